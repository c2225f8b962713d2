-- release: give requests of a batch back: to run later, to run at once, or as dead letters.
--
-- KEYS[1]  items     hash  id -> group:nonce:size:envelope
-- KEYS[2]  pending   list  since_ms:split:size:id, oldest first
-- KEYS[3]  claims    hash  token -> record; bell:id -> token
-- KEYS[4]  own       hash  id -> token:nonce
-- KEYS[5]  groups    zset  group -> when it next wants attention (ms)
-- KEYS[6]  bells     hash  group -> outstanding:rung_ms:pause_ms:feared:fills
-- KEYS[7]  routes    hash  group -> where to ring for it (JSON)
-- KEYS[8]  delayed   zset  group:id -> ready (ms)
-- KEYS[9]  dead      zset  group:id -> died (ms)
-- KEYS[10] attempts  hash  id -> record of attempts
-- KEYS[11] errors    hash  id -> text of the last error
-- KEYS[12] stats     hash  counters
-- KEYS[13] stale     hash  group:id -> its entries from the head: s stale, l live
-- KEYS[14] parked    hash  group -> its delayed requests and dead letters
-- KEYS[15] done      zset  nonce or token -> expiry (ms)
-- ARGV[1]  now_ms       int   empty: the server's time
-- ARGV[2]  group        text
-- ARGV[3]  token        text
-- ARGV[4]  fence        text  of the claim
-- ARGV[5]  flush_every  int
-- ARGV[6]  interval_ms  int
-- ARGV[7]  max_dead     int   dead letters of the task; then the oldest goes
-- ARGV[8]  size         int   requests that the batch began with
-- ARGV[9]  window_ms    int   how long a call is remembered that is dead
-- ARGV[10+] outcomes    list  (id, since_ms, verb, delay_ms, error)*, at most 250; the verb is
--                             "retry", "retry_batch" (the whole batch failed), "put_back",
--                             "postpone" (put back for a cause outside the request) or "dead"
--
-- A batch that failed is retried whole; if it fails again, although another batch of the task went
-- well meanwhile, one of its requests is to blame: it is halved. In an outage nothing goes well.
-- What is put back is no try, but it is counted: each time it waits longer, and what is put back
-- again and again for no cause outside it is halved, until the claimer gives it up.
-- Returns {"released", count, signals}, or {"fenced"} for a token without a claim, which changes
-- nothing. The claim stays open until an ack ends it. Cost O(outcomes).
local items, pending, claims, own = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local groups, bells, routes, delayed, dead = KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local attempts, errors, stats, stale = KEYS[10], KEYS[11], KEYS[12], KEYS[13]
local parked, done = KEYS[14], KEYS[15]
local now_ms, group, token, fence = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local flush_every, interval_ms = tonumber(ARGV[5]), tonumber(ARGV[6])
local max_dead, size = tonumber(ARGV[7]), tonumber(ARGV[8])
local window_ms = tonumber(ARGV[9])
local outcomes = {unpack(ARGV, 10)}

local now = clock(now_ms)
local record = redis.call('HGET', claims, token)
if not is_claim(record, fence) then
  return {'fenced'}
end
local ids = {}
for i = 1, #outcomes, 5 do
  ids[#ids + 1] = outcomes[i]
end
local owners = call_many('HMGET', own, ids)
local records = call_many('HMGET', attempts, ids)
local excess = redis.call('ZCARD', dead) - max_dead
local well_ms = tonumber(redis.call('HGET', stats, 'well_ms') or 0)
redis.call('HLEN', items)
redis.call('LLEN', pending)
redis.call('ZCARD', groups)
redis.call('HLEN', bells)
redis.call('HLEN', routes)
redis.call('ZCARD', delayed)
redis.call('HLEN', errors)
redis.call('HLEN', stale)
redis.call('HLEN', parked)
redis.call('ZCARD', done)

-- Counts a put-back in a record; returns how long it waits. It keeps its age: what its run may have
-- told meanwhile is known to be its own by that.
local counted = {put_back = 0, postpone = 0}
local function put_back(state, verb, delay_ms, since_ms)
  local field = verb == 'put_back' and 'put_backs' or 'postponed'
  local before = state[field]
  if verb == 'put_back' and before > 0 then
    state.split = halve(flush_every, state.split, size)
  end
  state[field], state.since_ms = before + 1, since_ms
  counted[verb] = counted[verb] + 1
  return back_off(delay_ms, before)
end

local function try(state, verb)
  if verb == 'retry_batch' and state.tries > 0 and well_ms > state.tried_ms then
    state.split = halve(flush_every, state.split, size)
  end
  state.tries, state.tried_ms, state.since_ms = state.tries + 1, now, 0
end

local freed, waiting, later, buried, written, texts = {}, {}, {}, {}, {}, {}
local tombstones, remembered_ms = {}, int(now + window_ms)
for i, id in ipairs(ids) do
  local since_ms, verb, delay_ms, error = unpack(outcomes, 5 * i - 3, 5 * i)
  local owner, nonce = string.match(owners[i] or '', '^([^:]*):(.*)$')
  if owner == token then
    freed[#freed + 1] = id
    local state = read_attempts(records[i])
    delay_ms = tonumber(delay_ms)
    if counted[verb] then
      delay_ms = put_back(state, verb, delay_ms, tonumber(since_ms))
    else
      try(state, verb)
      -- A retry of what was revoked is not to run, so it is told at once.
      delay_ms = state.revoked == 1 and 0 or delay_ms
    end
    written[#written + 1], written[#written + 2] = id, write_attempts(state)
    if error ~= '' then
      texts[#texts + 1], texts[#texts + 2] = id, error
    end
    local member = group .. ':' .. id
    if verb == 'dead' then
      buried[#buried + 1], buried[#buried + 2] = int(now), member
      -- The letter may be dropped while its call is still being sent again.
      tombstones[#tombstones + 1], tombstones[#tombstones + 2] = remembered_ms, nonce
    elseif delay_ms > 0 then
      later[#later + 1], later[#later + 2] = int(now + delay_ms), member
    else
      waiting[#waiting + 1] = write_entry(tonumber(since_ms), state.split, '', id)
    end
  end
end
if #freed == 0 then
  return {'released', 0, 0}
end

-- Frees first, so that it also works when the server is out of memory.
call_many('HDEL', own, freed)
call_many('HSET', attempts, written)
call_many('HSET', errors, texts)
call_many('ZADD', delayed, later)
call_many('ZADD', dead, buried)
call_many('ZADD', done, tombstones)
park(parked, group, (#later + #buried) / 2)
excess = excess + #buried / 2
if #buried > 0 and excess > 0 then
  local oldest, gone = redis.call('ZRANGE', dead, 0, excess - 1), {}
  for i, member in ipairs(oldest) do
    local its
    its, gone[i] = string.match(member, '^([^:]*):(.*)$')
    park(parked, its, -1)
    if its ~= group then
      forget_route(routes, parked, its, redis.call('ZSCORE', groups, its))
    end
  end
  call_many('ZREM', dead, oldest)
  call_many('HDEL', items, gone)
  call_many('HDEL', attempts, gone)
  call_many('HDEL', errors, gone)
  redis.call('HINCRBY', stats, 'dropped', #gone)
end
for name, count in pairs({put_backs = counted.put_back, postponed = counted.postpone}) do
  if count > 0 then
    redis.call('HINCRBY', stats, name, count)
  end
end
if #waiting > 0 then
  give_back(pending, stale, group, waiting)
end
local signals = arm(pending, groups, bells, group, flush_every, interval_ms, now)
local waits, route = redis.call('LLEN', pending) > 0, read_claim(record).route
if route ~= '' and (waits or redis.call('HEXISTS', parked, group) == 1) then
  redis.call('HSETNX', routes, group, route)
end
forget_route(routes, parked, group, waits)
return {'released', #freed, signals}
