-- push: accept requests of one group, in order, and say how many doorbells to ring for them.
--
-- KEYS[1]  items     hash  id -> group:nonce:size:envelope
-- KEYS[2]  pending   list  since_ms:split:size:id, oldest first
-- KEYS[3]  own       hash  id -> token:nonce
-- KEYS[4]  groups    zset  group -> when it next wants attention (ms)
-- KEYS[5]  bells     hash  group -> outstanding:rung_ms:pause_ms:feared:fills
-- KEYS[6]  routes    hash  group -> where to ring for it (JSON)
-- KEYS[7]  eta       zset  group:id -> wall clock (ms)
-- KEYS[8]  dead      zset  group:id -> died (ms)
-- KEYS[9]  attempts  hash  id -> record of attempts
-- KEYS[10] errors    hash  id -> text of the last error
-- KEYS[11] done      zset  nonce or token -> expiry (ms)
-- KEYS[12] revoked   zset  id -> expiry (ms)
-- KEYS[13] stats     hash  counters
-- KEYS[14] parked    hash  group -> its delayed requests and dead letters
-- ARGV[1]  now_ms       int   empty: the server's time
-- ARGV[2]  group        text  a hash of route and batch key
-- ARGV[3]  route        text  JSON
-- ARGV[4]  flush_every  int
-- ARGV[5]  interval_ms  int
-- ARGV[6]  max_pending  int   requests of the task that may wait
-- ARGV[7]  window_ms    int   how long a call is remembered whose retry takes its place
-- ARGV[8]  caller       text  token of the batch that the call is made from, or empty
-- ARGV[9]  age_ms       int   how long ago these requests were first sent; 0: they are sent first now
-- ARGV[10+] requests    list  (id, nonce, eta_ms or empty, size or empty, envelope)*, at most 500
--
-- The size is what a worker will hold of a compressed envelope, in bytes. Returns {"pushed" signals
-- now_ms statuses}, words in one string, which a client reads sooner than a list; a status per
-- request: "new", "again" (this very call is stored already), "done" (it ran already), "duplicate"
-- (another call with this id waits or runs), "full", "forgotten" (it was sent before, so long ago that
-- it may have run and be forgotten: it is not stored). A call from inside a batch with the id of one
-- of its own requests is its retry. A call whose id was revoked waits for nothing but to be told so.
-- Cost O(requests).
local items, pending, own, groups = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local bells, routes, eta, dead = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local attempts, errors, done, revoked = KEYS[9], KEYS[10], KEYS[11], KEYS[12]
local stats, parked = KEYS[13], KEYS[14]
local now_ms, group, route, flush_every = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local interval_ms, max_pending = tonumber(ARGV[5]), tonumber(ARGV[6])
local window_ms, caller, age_ms = tonumber(ARGV[7]), ARGV[8], tonumber(ARGV[9])
local requests = {unpack(ARGV, 10)}

local now = clock(now_ms)
local ids = {}
for i = 1, #requests, 5 do
  ids[#ids + 1] = requests[i]
end

local values = redis.call('HMGET', items, unpack(ids))
local waiting = redis.call('HLEN', items) - redis.call('ZCARD', dead)
local routed = redis.call('HEXISTS', routes, group) == 1

-- Whether all that ended since these requests were first sent is still remembered. A tombstone that
-- went before its time, because there were too many, has left its expiry in `forgotten_ms`.
local function is_sure()
  if age_ms == 0 then
    return true
  end
  local forgotten_ms = tonumber(redis.call('HGET', stats, 'forgotten_ms') or 0)
  return age_ms < window_ms and now - age_ms > forgotten_ms - window_ms
end
local sure = is_sure()

local function judge(i, id, nonce, placed)
  local call = nonce == '' and id or nonce
  local stored = placed[id] or values[i]
  if stored and read_nonce(stored, id) == call then
    return 'again'
  end
  if redis.call('ZSCORE', done, call) then
    return 'done'
  end
  if placed[id] then
    return 'duplicate'
  end
  local owner = stored and caller ~= '' and redis.call('HGET', own, id)
  if owner and string.match(owner, '^[^:]*') == caller then
    return 'retry'
  end
  if not sure then
    return 'forgotten'
  end
  if not stored then
    return waiting < max_pending and 'new' or 'full'
  end
  if redis.call('ZSCORE', dead, string.match(stored, '^[^:]*') .. ':' .. id) then
    return 'dead'
  end
  return 'duplicate'
end

-- An id that Celery made for this very call cannot have been revoked before it.
local function is_revoked(id, nonce, status)
  if status == 'retry' then
    return read_attempts(redis.call('HGET', attempts, id)).revoked == 1
  end
  return nonce ~= '' and tonumber(redis.call('ZSCORE', revoked, id) or 0) > now
end

-- The record of a call that its own batch made again: all its runs are earlier ones.
local function called_again(record)
  local before, state = read_attempts(record), read_attempts('')
  state.earlier = 1 + before.tries + before.crashes + before.put_backs + before.postponed
    + before.earlier
  return write_attempts(state)
end

local statuses, stores, entries, etas, records = {}, {}, {}, {}, {}
local placed, forgotten, released, buried, tombstones = {}, {}, {}, {}, {}
local new, newly_revoked, since = 0, 0, int(now) .. ':' .. FRESH .. ':'
for i, id in ipairs(ids) do
  local nonce, eta_ms = requests[5 * i - 3], requests[5 * i - 2]
  local size, envelope = requests[5 * i - 1], requests[5 * i]
  local status = judge(i, id, nonce, placed)
  if status == 'new' or status == 'retry' or status == 'dead' then
    if status == 'new' then
      waiting, new = waiting + 1, new + 1
    else
      forgotten[#forgotten + 1] = id
      tombstones[#tombstones + 1] = int(now + window_ms)
      tombstones[#tombstones + 1] = read_nonce(values[i], id)
    end
    if status == 'retry' then
      released[#released + 1] = id
    elseif status == 'dead' then
      buried[#buried + 1] = string.match(values[i], '^[^:]*') .. ':' .. id
    end
    placed[id] = group .. ':' .. nonce .. ':' .. size .. ':' .. envelope
    stores[#stores + 1] = id
    stores[#stores + 1] = placed[id]
    local may_run, record = not is_revoked(id, nonce, status), nil
    if status == 'retry' then
      record = called_again(redis.call('HGET', attempts, id))
    end
    if not may_run then
      record = revoke_attempts(record)
    end
    if record then
      records[#records + 1], records[#records + 2] = id, record
    end
    if not may_run then
      newly_revoked = newly_revoked + (status == 'retry' and 0 or 1)
    end
    if may_run and eta_ms ~= '' and tonumber(eta_ms) > now then
      etas[#etas + 1] = eta_ms
      etas[#etas + 1] = group .. ':' .. id
    else
      entries[#entries + 1] = since .. (size == '' and #placed[id] or size) .. ':' .. id
    end
    status = 'new'
  end
  statuses[i] = status
end
if #stores == 0 then
  return {table.concat({'pushed', 0, int(now), unpack(statuses)}, ' ')}
end

-- What is written is read by a typed command first, here if not above: then a key of the wrong type
-- changes nothing.
redis.call('LLEN', pending)
redis.call('ZCARD', groups)
redis.call('HLEN', bells)
redis.call('HLEN', stats)
if #etas > 0 then
  redis.call('ZCARD', eta)
end
if #forgotten > 0 or #records > 0 then
  redis.call('HLEN', attempts)
  redis.call('HLEN', errors)
end
if #etas > 0 or #buried > 0 then
  redis.call('HLEN', parked)
end

-- The first write allocates: a server that is out of memory refuses the call whole.
call_many('HSET', items, stores)
if #forgotten > 0 then
  call_many('HDEL', own, released)
  call_many('ZREM', dead, buried)
  call_many('HDEL', attempts, forgotten)
  call_many('HDEL', errors, forgotten)
  call_many('ZADD', done, tombstones)
end
call_many('HSET', attempts, records)
call_many('RPUSH', pending, entries)
call_many('ZADD', eta, etas)
park(parked, group, #etas / 2)
if not routed then
  redis.call('HSET', routes, group, route)
end
if new > 0 then
  redis.call('HINCRBY', stats, 'pushed', new)
end
if newly_revoked > 0 then
  redis.call('HINCRBY', stats, 'revoked', newly_revoked)
end
local signals = arm(pending, groups, bells, group, flush_every, interval_ms, now)
for _, member in ipairs(buried) do
  local its = string.match(member, '^[^:]*')
  park(parked, its, -1)
  forget_route(routes, parked, its, redis.call('ZSCORE', groups, its))
end
return {table.concat({'pushed', signals, int(now), unpack(statuses)}, ' ')}
