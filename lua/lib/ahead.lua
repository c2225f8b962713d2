-- ahead: what lies behind the first step of a batch.
-- Uses: records, selection, stale, trigger, values
-- Needs: items, pending, own, max_bytes

-- Whether what lies ahead makes a batch full; reads entries only.
local function fills_up(chosen)
  local chosen_count, level, marks, met = #chosen.entries, chosen.level, {}, {}
  local ahead, count, size = chosen.scanned, chosen_count, chosen.bytes
  -- One that is too large by itself is full only if another one waits behind it.
  while count < chosen.most and (size <= max_bytes or count == chosen_count) and ahead < waiting do
    local entries = redis.call('LRANGE', pending, ahead, ahead + CHUNK - 1)
    local ids, splits, sizes = ids_of(entries)
    local owners = call_many('HMGET', own, ids)
    for i, id in ipairs(ids) do
      if any_stale then
        marks[id] = marks[id] or marks_of(id)
      end
      if any_stale and string.sub(marks[id], 1, 1) == 's' then
        marks[id] = string.sub(marks[id], 2)
      elseif chosen.seen[id] or met[id] or owners[i] or redis.call('HSTRLEN', items, id) == 0 then
        -- It counts for nothing: it is there twice, runs already, or is gone.
        met[id] = true
      elseif (tonumber(splits[i]) or 0) == level then
        count, size, met[id] = count + 1, size + size_of(id, sizes[i]), true
      else
        return false
      end
    end
    ahead = ahead + #entries
  end
  return count >= chosen.most or (size > max_bytes and count > chosen_count)
end

-- Takes out of what lies ahead what waits no longer, and keeps the rest with what was chosen. Else
-- it would count for a full batch, and be rung for without end.
local function clean_ahead(chosen)
  local last = math.min(waiting, chosen.scanned + flush_every + MAX_SKIPPED)
  while chosen.scanned < last do
    local first = chosen.scanned
    local entries = redis.call('LRANGE', pending, first, math.min(first + CHUNK, last) - 1)
    for i, id in ipairs((ids_of(entries))) do
      if is_there(chosen, id) then
        chosen.entries[#chosen.entries + 1], chosen.seen[id] = entries[i], true
      end
      pass(id)
    end
    chosen.scanned = first + #entries
  end
end
