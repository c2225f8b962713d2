-- selection: the requests at the head of a pending list that make one batch.
-- Uses: records, stale, trigger, values
-- Needs: token, items, pending, own, max_bytes, step, step_bytes

-- So many entries of what waits no longer are cleared at once.
local MAX_SKIPPED = 5 * CHUNK
local waiting = redis.call('LLEN', pending)

-- The size of a request that waits; what comes back from a delay has it not in its entry.
local function size_of(id, size)
  return tonumber(size) or redis.call('HSTRLEN', items, id)
end

-- How many of some requests, of one level and at least one, are together not larger than that.
local function count_fitting(ids, splits, sizes, bytes)
  local sum = 0
  for i, id in ipairs(ids) do
    sum = sum + size_of(id, sizes[i])
    if i > 1 and (sum > bytes or splits[i] ~= splits[1]) then
      return i - 1
    end
  end
  return #ids
end

-- Whether a request waits in earnest: if so it is read when its turn comes, and not before.
local function is_there(chosen, id)
  return not is_stale(id) and not chosen.seen[id]
    and redis.call('HSTRLEN', items, id) > 0
    and redis.call('HEXISTS', own, id) == 0
end

-- Chooses, of entries at the head, what is still there and free, until one does not fit.
local function take(chosen, entries, ids, splits, values, owners)
  local seen = chosen.seen
  for i = 1, #values do
    local id, value = ids[i], values[i]
    if not is_stale(id) and value and not owners[i] and not seen[id] then
      local count, size = #chosen.entries, read_size(value)
      local split, has = tonumber(splits[i]) or 0, chosen.had + count
      -- The first one decides of which split level a batch is.
      if not chosen.level then
        chosen.level, chosen.most = split, split_limit(split)
      end
      local fits = split == chosen.level and has < chosen.most
      chosen.cut = fits and has > 0 and chosen.bytes + size > max_bytes
      if not fits or chosen.cut then
        chosen.open = false
        return
      end
      chosen.bytes, seen[id] = chosen.bytes + size, true
      chosen.entries[count + 1], chosen.ids[count + 1] = entries[i], id
      chosen.values[count + 1] = value
      chosen.owners[2 * count + 1] = id
      chosen.owners[2 * count + 2] = token .. ':' .. read_nonce(value, id)
    end
    pass(id)
    chosen.scanned = chosen.scanned + 1
  end
end

-- Reads on, no more than what is surely taken: the entries tell how large it is.
local function look(chosen)
  local count = #chosen.entries
  local wanted = chosen.level and chosen.most - chosen.had - count or flush_every
  local last = chosen.scanned + math.min(wanted, step - count, CHUNK) - 1
  local entries = redis.call('LRANGE', pending, chosen.scanned, last)
  local ids, splits, sizes = ids_of(entries)
  local left = max_bytes - chosen.bytes
  local step_left = step_bytes - (chosen.bytes - chosen.began_with)
  local id, first = ids[1], size_of(ids[1], sizes[1])
  local other = chosen.level and (tonumber(splits[1]) or 0) ~= chosen.level
  if chosen.level and (first > left or other) and is_there(chosen, id) then
    chosen.cut, chosen.open = not other, false
  elseif count > 0 and first > step_left then
    if is_there(chosen, id) then
      chosen.paused = true
    else
      pass(id)
      chosen.scanned = chosen.scanned + 1
    end
  else
    local fitting = count_fitting(ids, splits, sizes, math.min(left, step_left))
    local values = redis.call('HMGET', items, unpack(ids, 1, fitting))
    local owners = redis.call('HMGET', own, unpack(ids, 1, fitting))
    take(chosen, entries, ids, splits, values, owners)
  end
end

-- Chooses a batch, or the next step of one, as far as the limits and the list allow. `held` is how
-- much earlier steps of its claim took.
local function choose(claim, held)
  local chosen = {
    entries = {}, ids = {}, values = {}, owners = {}, seen = {}, scanned = 0, had = 0, bytes = 0,
    began_with = 0, most = flush_every, cut = false, open = waiting > 0, paused = false,
  }
  if claim then
    local split, bytes = string.match(claim.progress, '^(%d+),(%d+)$')
    chosen.level, chosen.bytes, chosen.had = tonumber(split), tonumber(bytes), held
    chosen.most, chosen.began_with = split_limit(chosen.level), chosen.bytes
  end
  local last = math.min(waiting, flush_every + MAX_SKIPPED)
  while chosen.open and not chosen.paused and chosen.scanned < last do
    look(chosen)
    local count = #chosen.entries
    chosen.open = chosen.open and (not chosen.level or chosen.had + count < chosen.most)
    chosen.paused = chosen.paused or count >= step
  end
  chosen.paused = (chosen.paused or claim) and chosen.open and chosen.scanned < waiting
  chosen.full = chosen.cut or chosen.had + #chosen.entries >= chosen.most
  return chosen
end
