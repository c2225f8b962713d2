-- rows: requests of a batch, as who claims it reads them.
-- Uses: batches, records, selection, values
-- Needs: items, batch, attempts, got, step, step_bytes

local tried_before = redis.call('HLEN', attempts) > 0

-- Entry, record of attempts and value of each request.
local function rows_of(entries, ids, values)
  local records = tried_before and call_many('HMGET', attempts, ids) or {}
  local rows, last = {}, 0
  for i, entry in ipairs(entries) do
    rows[last + 1], rows[last + 2], rows[last + 3] = entry, records[i] or '', values[i] or ''
    last = last + 3
  end
  return rows
end

-- The step of a batch that its caller has not heard of, and how much of the batch it has with it.
local function read_step()
  local entries = redis.call('LRANGE', batch, got, got + step - 1)
  local ids, splits, sizes = ids_of(entries)
  local count = count_fitting(ids, splits, sizes, step_bytes)
  local mine, mine_ids = owned_of(entries, {unpack(ids, 1, count)})
  return rows_of(mine, mine_ids, call_many('HMGET', items, mine_ids)), got + count
end
