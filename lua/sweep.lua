-- sweep: name what is overdue, and book one doorbell for each group that nobody rang for.
-- Uses: claims, clamp, clock, doorbells, trigger, values
--
-- KEYS[1]  groups    zset!  group -> when it next wants attention (ms)
-- KEYS[2]  bells     hash!  group -> outstanding:rung_ms:pause_ms:feared:fills
-- KEYS[3]  routes    hash!  group -> where to ring for it (JSON)
-- KEYS[4]  leases    zset!  token -> expiry (ms)
-- KEYS[5]  claims    hash!  token -> record; bell:id -> token
-- KEYS[6]  delayed   zset!  group:id -> ready (ms)
-- KEYS[7]  eta       zset!  group:id -> wall clock (ms)
-- KEYS[8]  done      zset!  nonce or token -> expiry (ms)
-- KEYS[9]  revoked   zset!  id -> expiry (ms)
-- KEYS[10] stats     hash   counters
-- KEYS[11] attempts  hash!  id -> record of attempts
-- ARGV[1] now_ms      int   empty: the server's time
-- ARGV[2] sweeper     text  who sweeps; empty: sweeps whoever leads
-- ARGV[3] fresh_ms    int   another sweeper leads while its last sweep is younger
-- ARGV[4] trigger     text  of the worker that sweeps, with the longest wait that a record can show
-- ARGV[5] longest_ms  int   the longest delay of what is not retried, but put back
-- ARGV[6] greet       flag  a worker has just started; ring again for what nobody answered
-- ARGV[7] limit       int   names of each kind
-- ARGV[8] window_ms   int   how long a finished call is remembered
--
-- Returns {"swept", wait_ms, due, expired, ready, now_ms}
--         {"follower"}  another sweeper leads
-- The wait is the time until something else wants attention, or -1; due are {(group, route)*},
-- expired {(token, group)*}, ready {group:id*}. Cost O(limit log n).

local leader = redis.call('HGET', stats, 'leader')
local swept_ms = tonumber(redis.call('HGET', stats, 'swept_ms') or 0)
local age_ms = now - swept_ms
local led = leader and leader ~= sweeper and age_ms >= 0 and age_ms < fresh_ms
if sweeper ~= '' and led and not greet then
  return {'follower'}
end

guard()

local function overdue(key)
  return redis.call('ZRANGEBYSCORE', key, '-inf', int(now), 'LIMIT', 0, limit)
end

-- Frees first, if only in name, so that it also works when the server is out of memory.
local forgotten = overdue(done)
forgotten[#forgotten + 1] = ''
call_many('ZREM', done, forgotten)
call_many('ZREM', revoked, overdue(revoked))

clamp_all()
if greet then
  for _, group in ipairs(redis.call('ZRANGE', groups, 0, limit - 1)) do
    local state = read_bells(redis.call('HGET', bells, group))
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
  local state = read_bells(redis.call('HGET', bells, group))
  if ring(state, 1) > 0 then
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
