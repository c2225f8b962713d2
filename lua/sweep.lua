-- sweep: name what is overdue, and book one doorbell for each group that nobody rang for.
--
-- KEYS[1] groups   zset  group -> when it next wants attention (ms)
-- KEYS[2] bells    hash  group -> outstanding:rung_ms:pause_ms:feared:fills
-- KEYS[3] routes   hash  group -> where to ring for it (JSON)
-- KEYS[4] leases   zset  token -> expiry (ms)
-- KEYS[5] claims   hash  token -> record; bell:id -> token
-- KEYS[6] delayed  zset  group:id -> ready (ms)
-- KEYS[7] eta      zset  group:id -> wall clock (ms)
-- KEYS[8] done     zset  nonce or token -> expiry (ms)
-- KEYS[9] revoked  zset  id -> expiry (ms)
-- KEYS[10] stats   hash  counters
-- KEYS[11] attempts hash id -> record of attempts
-- ARGV[1] now_ms       int   empty: the server's time
-- ARGV[2] sweeper      text  who sweeps; empty: sweeps whoever leads
-- ARGV[3] fresh_ms     int   another sweeper leads while its last sweep is younger
-- ARGV[4] interval_ms  int   the longest wait that a sound record can show, but for its own pause
-- ARGV[5] longest_ms   int   the longest delay of what is not retried, but put back
-- ARGV[6] greet        int   1: a worker has just started; ring again for what nobody answered
-- ARGV[7] limit        int   names of each kind
-- ARGV[8] flush_every  int   of the worker that has just started
-- ARGV[9] window_ms    int   how long a finished call is remembered
--
-- Returns {"swept", wait_ms or -1, {(group, route)*}, {(token, group)*}, {ready group:id*}, now_ms},
-- where wait_ms is the time until something else wants attention; or {"follower"}.
-- Cost O(limit log n).
local groups, bells, routes, leases, claims = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local delayed, eta, done, revoked, stats = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local attempts = KEYS[11]
local now_ms, sweeper, fresh_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
local interval_ms, longest_ms = tonumber(ARGV[4]), tonumber(ARGV[5])
local greet, limit, flush_every = ARGV[6] == '1', tonumber(ARGV[7]), tonumber(ARGV[8])
local window_ms = tonumber(ARGV[9])

local now = clock(now_ms)
local leader = redis.call('HGET', stats, 'leader')
local swept_ms = tonumber(redis.call('HGET', stats, 'swept_ms') or 0)
local age_ms = now - swept_ms
local led = leader and leader ~= sweeper and age_ms >= 0 and age_ms < fresh_ms
if sweeper ~= '' and led and not greet then
  return {'follower'}
end
redis.call('HLEN', bells)
redis.call('HLEN', routes)
redis.call('HLEN', claims)
redis.call('ZCARD', groups)
redis.call('ZCARD', leases)
redis.call('ZCARD', delayed)
redis.call('ZCARD', eta)
redis.call('ZCARD', done)
redis.call('ZCARD', revoked)
redis.call('HLEN', attempts)

local function overdue(key)
  return redis.call('ZRANGEBYSCORE', key, '-inf', int(now), 'LIMIT', 0, limit)
end

-- Frees first, if only in name, so that it also works when the server is out of memory.
local forgotten = overdue(done)
forgotten[#forgotten + 1] = ''
call_many('ZREM', done, forgotten)
call_many('ZREM', revoked, overdue(revoked))

-- What lies further ahead than its record allows was written before the clock went back. Every
-- record allows `least_ms`.
local function clamp(key, least_ms, allowed_ms)
  local over = '(' .. int(now + least_ms)
  local farthest =
    redis.call('ZREVRANGEBYSCORE', key, '+inf', over, 'WITHSCORES', 'LIMIT', 0, limit)
  for i = 1, #farthest, 2 do
    local ahead_ms = tonumber(farthest[i + 1]) - now
    local bound_ms = allowed_ms(farthest[i], tonumber(farthest[i + 1]))
    if ahead_ms > bound_ms then
      redis.call('ZADD', key, int(now + bound_ms), farthest[i])
    end
  end
end

clamp(groups, interval_ms, function(group)
  return math.max(interval_ms, read_bells(redis.call('HGET', bells, group), now).pause_ms)
end)
clamp(leases, 0, function(token)
  return read_claim(redis.call('HGET', claims, token)).lease_ms
end)
-- A retry may have any delay: it began when the request was last tried.
clamp(delayed, longest_ms, function(member, ready_ms)
  local id = string.match(member, '^[^:]*:(.*)$')
  local tried_ms = read_attempts(redis.call('HGET', attempts, id)).tried_ms
  local own_ms = tried_ms > 0 and ready_ms - tried_ms or longest_ms
  return tried_ms > now and own_ms or math.max(own_ms, longest_ms)
end)
if tonumber(redis.call('HGET', stats, 'forgotten_ms') or 0) > now + window_ms then
  redis.call('HSET', stats, 'forgotten_ms', int(now + window_ms))
end

if greet then
  for _, group in ipairs(redis.call('ZRANGE', groups, 0, limit - 1)) do
    local state = read_bells(redis.call('HGET', bells, group), now)
    if state.out > 0 or state.fills > flush_every then
      state.rung_ms, state.pause_ms = now - MIN_PAUSE_MS, MIN_PAUSE_MS
      state.fills = math.min(state.fills, flush_every)
      redis.call('HSET', bells, group, write_bells(state))
      redis.call('ZADD', groups, int(now), group)
    end
  end
end

local due = {}
for _, group in ipairs(overdue(groups)) do
  local state = read_bells(redis.call('HGET', bells, group), now)
  if ring(state, 1, now) > 0 then
    redis.call('HSET', bells, group, write_bells(state))
    due[#due + 1] = group
    due[#due + 1] = redis.call('HGET', routes, group) or ''
  end
  redis.call('ZADD', groups, int(state.rung_ms + state.pause_ms), group)
end

local expired = {}
for _, token in ipairs(overdue(leases)) do
  expired[#expired + 1] = token
  expired[#expired + 1] = read_claim(redis.call('HGET', claims, token)).group
end

local ready = overdue(delayed)
for _, member in ipairs(overdue(eta)) do
  ready[#ready + 1] = member
end

if sweeper ~= '' and not led then
  redis.call('HSET', stats, 'leader', sweeper, 'swept_ms', int(now))
end

local wait_ms = -1
for _, key in ipairs({groups, leases, delayed, eta}) do
  local score = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')[2]
  if score then
    local ahead_ms = math.max(tonumber(score) - now, 0)
    wait_ms = wait_ms < 0 and ahead_ms or math.min(wait_ms, ahead_ms)
  end
end
return {'swept', int(wait_ms), due, expired, ready, int(now)}
