-- promote: let requests whose delay is over wait with the others; a retry is due at once.
-- Uses: arm, attempts, clock, doorbells, giving, records, routes, values
--
-- KEYS[1] pending   list!  since_ms:split:size:id, oldest first
-- KEYS[2] groups    zset!  group -> when it next wants attention (ms)
-- KEYS[3] bells     hash   group -> outstanding:rung_ms:pause_ms:feared:fills
-- KEYS[4] routes    hash   group -> where to ring for it (JSON)
-- KEYS[5] delayed   zset!  group:id -> ready (ms)
-- KEYS[6] eta       zset!  group:id -> wall clock (ms)
-- KEYS[7] attempts  hash   id -> record of attempts
-- KEYS[8] stale     hash!  group:id -> its entries from the head: s stale, l live
-- KEYS[9] parked    hash!  group -> its delayed requests and dead letters
-- ARGV[1]  now_ms   int   empty: the server's time
-- ARGV[2]  group    text
-- ARGV[3]  trigger  text  of the task
-- ARGV[4+] ids      list  at most 500
--
-- Returns {"promoted", count, signals, route}
-- An id that is not due, or that another sweeper was faster with, is left alone. Cost O(ids log n).

local route = redis.call('HGET', routes, group) or ''
local records = call_many('HMGET', attempts, ids)

-- Frees first, so that it also works when the server is out of memory.
local function take(key, member)
  local ready_ms = redis.call('ZSCORE', key, member)
  return ready_ms and tonumber(ready_ms) <= now and redis.call('ZREM', key, member) == 1
end

local rung = read_bells(redis.call('HGET', bells, group))
guard()
local entries, retries = {}, {}
for i, id in ipairs(ids) do
  local member = group .. ':' .. id
  if take(delayed, member) then
    local state = read_attempts(records[i] or '')
    local since_ms = state.since_ms > 0 and state.since_ms or now
    retries[#retries + 1] = write_entry(since_ms, state.split, '', id)
  elseif take(eta, member) then
    entries[#entries + 1] = write_entry(now, FRESH, '', id)
  end
end
local count = #entries + #retries
if count == 0 then
  return {'promoted', 0, 0, route}
end
park(group, -count)
call_many('RPUSH', pending, entries)
if #retries > 0 then
  give_back(retries)
end
local signals = arm(redis.call('LLEN', pending), rung)
return {'promoted', count, signals, route}
