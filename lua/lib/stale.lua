-- stale: entries that a cancel left in a pending list, and that count for nothing.
-- Uses: records, values
-- Needs: group, stale

local any_stale = redis.call('HLEN', stale) > 0

-- Only of what was cancelled it is noted which of its entries are stale, s, or live, l, from the
-- head. What lies behind those that are noted is live.
local notes = {}
local function marks_of(id)
  if not notes[id] then
    notes[id] = redis.call('HGET', stale, group .. ':' .. id) or ''
  end
  return notes[id]
end

local function is_stale(id)
  return any_stale and string.sub(marks_of(id), 1, 1) == 's'
end

-- Goes on behind an entry of an id.
local function pass(id)
  if any_stale then
    notes[id] = string.sub(marks_of(id), 2)
  end
end

-- Writes down what is left of the notes. `kept` are entries that were passed, and stay all the same.
local function note_stale(kept)
  if not any_stale then
    return
  end
  for _, entry in ipairs(kept) do
    local _, _, id = read_entry(entry)
    notes[id] = 'l' .. notes[id]
  end
  local gone, remaining = {}, {}
  for id, marks in pairs(notes) do
    if string.find(marks, 's') then
      remaining[#remaining + 1] = group .. ':' .. id
      remaining[#remaining + 1] = marks
    else
      gone[#gone + 1] = group .. ':' .. id
    end
  end
  call_many('HDEL', stale, gone)
  call_many('HSET', stale, remaining)
end
