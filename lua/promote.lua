-- promote: let requests whose delay is over wait with the others; a retry is due at once.
--
-- KEYS[1] items     hash  id -> group:nonce:size:envelope
-- KEYS[2] pending   list  since_ms:split:size:id, oldest first
-- KEYS[3] groups    zset  group -> when it next wants attention (ms)
-- KEYS[4] bells     hash  group -> outstanding:rung_ms:pause_ms:feared:fills
-- KEYS[5] routes    hash  group -> where to ring for it (JSON)
-- KEYS[6] delayed   zset  group:id -> ready (ms)
-- KEYS[7] eta       zset  group:id -> wall clock (ms)
-- KEYS[8] attempts  hash  id -> record of attempts
-- KEYS[9] stale     hash  group:id -> its entries from the head: s stale, l live
-- KEYS[10] parked   hash  group -> its delayed requests and dead letters
-- ARGV[1]  now_ms       int   empty: the server's time
-- ARGV[2]  group        text
-- ARGV[3]  flush_every  int
-- ARGV[4]  interval_ms  int
-- ARGV[5+] ids          list  at most 500
--
-- Returns {"promoted", count, signals, route}. An id that is not due, or that another sweeper was
-- faster with, is left alone. Cost O(ids log n).
local items, pending, groups, bells = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local routes, delayed, eta, attempts, stale = KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local parked = KEYS[10]
local now_ms, group = ARGV[1], ARGV[2]
local flush_every, interval_ms = tonumber(ARGV[3]), tonumber(ARGV[4])
local ids = {unpack(ARGV, 5)}

local now = clock(now_ms)
local route = redis.call('HGET', routes, group) or ''
local records = call_many('HMGET', attempts, ids)
redis.call('HLEN', items)
redis.call('LLEN', pending)
redis.call('ZCARD', groups)
redis.call('HLEN', bells)
redis.call('ZCARD', delayed)
redis.call('ZCARD', eta)
redis.call('HLEN', stale)
redis.call('HLEN', parked)

-- Frees first, so that it also works when the server is out of memory.
local function take(key, member)
  local ready_ms = redis.call('ZSCORE', key, member)
  return ready_ms and tonumber(ready_ms) <= now and redis.call('ZREM', key, member) == 1
end

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
park(parked, group, -count)
call_many('RPUSH', pending, entries)
if #retries > 0 then
  give_back(pending, stale, group, retries)
end
local signals = arm(pending, groups, bells, group, flush_every, interval_ms, now)
return {'promoted', count, signals, route}
