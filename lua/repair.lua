-- repair: index requests of one group again that no index knows, and forget owners without a claim.
-- Uses: arm, clock, doorbells, records, routes, values
--
-- KEYS[1]  items    hash!  id -> group:nonce:size:envelope
-- KEYS[2]  pending  list   since_ms:split:size:id, oldest first
-- KEYS[3]  own      hash   id -> token:nonce
-- KEYS[4]  claims   hash   token -> record; bell:id -> token
-- KEYS[5]  leases   zset   token -> expiry (ms)
-- KEYS[6]  groups   zset!  group -> when it next wants attention (ms)
-- KEYS[7]  bells    hash   group -> outstanding:rung_ms:pause_ms:feared:fills
-- KEYS[8]  routes   hash   group -> where to ring for it (JSON)
-- KEYS[9]  delayed  zset   group:id -> ready (ms)
-- KEYS[10] eta      zset   group:id -> wall clock (ms)
-- KEYS[11] dead     zset   group:id -> died (ms)
-- KEYS[12] stale    hash!  group:id -> its entries from the head: s stale, l live
-- KEYS[13] parked   hash   group -> its delayed requests and dead letters
-- ARGV[1]  now_ms   int   empty: the server's time
-- ARGV[2]  group    text
-- ARGV[3]  route    text  JSON, for a group whose route is not known any more, or empty
-- ARGV[4]  trigger  text  of the task
-- ARGV[5]  noted    int   what `parked` says of the group
-- ARGV[6]  counted  int   what it should say
-- ARGV[7+] lost     list  marks:id of what the caller saw in no pending list; at most 500
--
-- Returns {"repaired", count, signals, route}
--         {"unrouted", count}  nobody knows where to ring for the group: nothing is changed
-- The marks are those in `stale` if they are of more entries than the caller saw: if they still are
-- the same, they are of a list that was deleted, and would hide a request that comes later. A second
-- entry of a request that waits after all is harmless: a claim skips it. Cost O(ids log n).

local ids, marks = {}, {}
for i, each in ipairs(lost) do
  marks[i], ids[i] = string.match(each, '^(%a*):(.*)$')
end
local owners = call_many('HMGET', own, ids)
local waiting = redis.call('LLEN', pending)
local has = tonumber(redis.call('HGET', parked, group) or 0)
route = redis.call('HGET', routes, group) or route

local function is_elsewhere(id, owner)
  local token = owner and first_of(owner)
  if token and redis.call('HEXISTS', claims, token) == 1 and redis.call('ZSCORE', leases, token) then
    return true
  end
  local member = group .. ':' .. id
  return redis.call('ZSCORE', delayed, member) or redis.call('ZSCORE', eta, member)
    or redis.call('ZSCORE', dead, member)
end

local entries, freed, unmarked = {}, {}, {}
for i, id in ipairs(ids) do
  local member = group .. ':' .. id
  if marks[i] ~= '' and redis.call('HGET', stale, member) == marks[i] then
    unmarked[#unmarked + 1] = member
  end
  if redis.call('HEXISTS', items, id) == 1 and not is_elsewhere(id, owners[i]) then
    entries[#entries + 1] = write_entry(now, FRESH, '', id)
    freed[#freed + 1] = id
    unmarked[#unmarked + 1] = member
  end
end
if route == '' and #entries + waiting + has > 0 then
  return {'unrouted', #entries + waiting + has}
end
local rung = read_bells(redis.call('HGET', bells, group))
guard()
call_many('HDEL', own, freed)
call_many('HDEL', stale, unmarked)
call_many('RPUSH', pending, entries)
-- Unless it has changed since.
park(group, has == noted and counted - noted or 0)
if #entries + waiting > 0 or redis.call('HEXISTS', parked, group) == 1 then
  redis.call('HSET', routes, group, route)
end
local signals = arm(redis.call('LLEN', pending), rung)
return {'repaired', #entries, signals, route}
