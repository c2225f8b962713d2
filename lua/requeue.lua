-- requeue: let dead letters of one group run again, with a clean record.
-- Uses: arm, clock, doorbells, records, routes, values
--
-- KEYS[1] pending   list!  since_ms:split:size:id, oldest first
-- KEYS[2] groups    zset!  group -> when it next wants attention (ms)
-- KEYS[3] bells     hash   group -> outstanding:rung_ms:pause_ms:feared:fills
-- KEYS[4] routes    hash   group -> where to ring for it (JSON)
-- KEYS[5] dead      zset!  group:id -> died (ms)
-- KEYS[6] attempts  hash!  id -> record of attempts
-- KEYS[7] errors    hash!  id -> text of the last error
-- KEYS[8] parked    hash!  group -> its delayed requests and dead letters
-- ARGV[1]  now_ms   int   empty: the server's time
-- ARGV[2]  group    text
-- ARGV[3]  route    text  JSON, for a group whose route is not known any more, or empty
-- ARGV[4]  trigger  text  of the task
-- ARGV[5+] ids      list  at most 500
--
-- Returns {"requeued", count, signals, route}
--         {"unrouted", count}  nobody knows where to ring for the group: nothing is changed
-- An id that is no dead letter is left alone. Cost O(ids log n).

route = redis.call('HGET', routes, group) or route
if route == '' then
  return {'unrouted', #ids}
end

local rung = read_bells(redis.call('HGET', bells, group))
guard()
-- Frees first, so that it also works when the server is out of memory.
local entries, revived = {}, {}
for _, id in ipairs(ids) do
  if redis.call('ZREM', dead, group .. ':' .. id) == 1 then
    revived[#revived + 1] = id
    entries[#entries + 1] = write_entry(now, FRESH, '', id)
  end
end
call_many('HDEL', attempts, revived)
call_many('HDEL', errors, revived)
park(group, -#entries)
call_many('RPUSH', pending, entries)
if #entries > 0 then
  redis.call('HSET', routes, group, route)
end
local signals = arm(redis.call('LLEN', pending), rung)
return {'requeued', #entries, signals, route}
