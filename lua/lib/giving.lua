-- giving: entries that were claimed go back to the list of their group, in the order of their age.
-- Uses: pending, records, values
-- Needs: group, pending, stale

-- Notes of entries which go to the head that they are live, if stale ones of the same id lie behind.
local function mark_live(entries)
  if redis.call('HLEN', stale) == 0 then
    return
  end
  for _, entry in ipairs(entries) do
    local _, _, id = read_entry(entry)
    local marks = redis.call('HGET', stale, group .. ':' .. id)
    if marks then
      redis.call('HSET', stale, group .. ':' .. id, 'l' .. marks)
    end
  end
end

-- The entries at the head that were given back before.
local function given_back()
  local entries = redis.call('LRANGE', pending, 0, CHUNK - 1)
  for i, entry in ipairs(entries) do
    local _, split = read_entry(entry)
    if split == FRESH then
      return {unpack(entries, 1, i - 1)}
    end
  end
  return entries
end

-- Whether no entry is younger than one behind it; and, if so, since when the last of them waits.
local function is_ordered(entries)
  local newest = 0
  for _, entry in ipairs(entries) do
    local since_ms = read_entry(entry)
    if since_ms < newest then
      return false
    end
    newest = since_ms
  end
  return true, newest
end

-- Sorts entries by age; those of one millisecond stay in their order.
local function sort_by_age(entries)
  local age, place = {}, {}
  for i, entry in ipairs(entries) do
    age[entry], place[entry] = read_entry(entry), i
  end
  table.sort(entries, function(a, b)
    return age[a] < age[b] or age[a] == age[b] and place[a] < place[b]
  end)
end

-- Gives entries back: before those that were never claimed, by age among what was given back, too.
-- So the head alone says whether anything is due.
local function give_back(entries)
  mark_live(entries)
  local ordered, newest = is_ordered(entries)
  local head_ms, head_split = read_entry(redis.call('LINDEX', pending, 0) or '')
  if ordered and (head_split == FRESH or head_ms >= newest) then
    return put_first(entries)
  end
  local earlier, merged = given_back(), {unpack(entries)}
  for _, entry in ipairs(earlier) do
    merged[#merged + 1] = entry
  end
  if not is_ordered(merged) then
    sort_by_age(merged)
  end
  redis.call('LTRIM', pending, #earlier, -1)
  put_first(merged)
end
