-- trigger: when a batch is due, and how large it may be.
-- Uses: clock, records
-- Needs: trigger
--
-- To add one: a field at the end of `core.model.Trigger`, its `packed` and `unpack`, and its check in
-- `core.settings`; a local that is read here, and what it means in the functions below. Nothing else
-- knows what makes a batch due. What is packed may have more fields than are read: a newer caller's.

local flush_every, interval_ms = string.match(trigger, '^(%d+):(%d+)')
flush_every, interval_ms = tonumber(flush_every), tonumber(interval_ms)

-- Whether the wait of an entry at the head is over. What was given back is due at once, and so is
-- what lies in the future: the clock went back.
local function is_due(entry)
  local since_ms, split = read_entry(entry)
  return split ~= FRESH or since_ms > now or since_ms + interval_ms <= now
end

-- When the wait of an entry at the head is over.
local function due_ms(entry)
  return read_entry(entry) + interval_ms
end

-- How many batches can be claimed of what waits behind a head, by whoever takes so many at once.
local function claimable_of(waiting, head, flush_every)
  local batches = waiting / flush_every
  return is_due(head) and math.ceil(batches) or math.floor(batches)
end

-- The most requests that one batch of a split level holds.
local function split_limit(split)
  return math.max(1, math.floor(flush_every / 2 ^ split))
end
