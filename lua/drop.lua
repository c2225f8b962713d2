-- drop: forget dead letters for good.
--
-- KEYS[1] items     hash  id -> group:nonce:envelope
-- KEYS[2] dead      zset  group:id -> died (ms)
-- KEYS[3] attempts  hash  id -> record of attempts
-- KEYS[4] errors    hash  id -> text of the last error
-- KEYS[5] stats     hash  counters
-- ARGV[1]  now_ms  int   not used: every script takes it
-- ARGV[2+] ids     list  at most 500
--
-- Returns {"dropped", count}. An id that is no dead letter is left alone. Cost O(ids log n).
local items, dead, attempts, errors, stats = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local ids = {unpack(ARGV, 2)}

local values = call_many('HMGET', items, ids)
redis.call('ZCARD', dead)
redis.call('HLEN', attempts)
redis.call('HLEN', errors)
redis.call('HLEN', stats)

local dropped = {}
for i, id in ipairs(ids) do
  local group = string.match(values[i] or '', '^([^:]*):')
  if group and redis.call('ZREM', dead, group .. ':' .. id) == 1 then
    dropped[#dropped + 1] = id
  end
end
call_many('HDEL', items, dropped)
call_many('HDEL', attempts, dropped)
call_many('HDEL', errors, dropped)
if #dropped > 0 then
  redis.call('HINCRBY', stats, 'dropped', #dropped)
end
return {'dropped', #dropped}
