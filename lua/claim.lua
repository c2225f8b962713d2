-- claim: lease the oldest due requests of one group to one run of a worker.
--
-- KEYS[1]  items     hash  id -> group:nonce:envelope
-- KEYS[2]  pending   list  since_ms:split:id, oldest first
-- KEYS[3]  batch     list  the claimed entries of this token
-- KEYS[4]  claims    hash  token -> record; bell:id -> token
-- KEYS[5]  own       hash  id -> token:nonce
-- KEYS[6]  leases    zset  token -> expiry (ms)
-- KEYS[7]  groups    zset  group -> when it next wants attention (ms)
-- KEYS[8]  bells     hash  group -> outstanding:rung_ms:pause_ms:feared
-- KEYS[9]  routes    hash  group -> where to ring for it (JSON)
-- KEYS[10] attempts  hash  id -> record of attempts
-- KEYS[11] delayed   zset  group:id -> ready (ms)
-- KEYS[12] eta       zset  group:id -> wall clock (ms)
-- KEYS[13] done      zset  nonce or token -> expiry (ms)
-- KEYS[14] stale     hash  group:id -> its entries from the head: s stale, l live
-- KEYS[15] stats     hash  counters
-- ARGV[1]  now_ms       int   empty: the server's time
-- ARGV[2]  group        text
-- ARGV[3]  token        text  a fresh nonce of this run
-- ARGV[4]  bell         text  id of the doorbell that woke the worker, or empty
-- ARGV[5]  rung_ms      int   when it was rung; 0: not known
-- ARGV[6]  flush_every  int
-- ARGV[7]  interval_ms  int
-- ARGV[8]  lease_ms     int
-- ARGV[9]  limit_ms     int   a run may not take longer; 0: no limit
-- ARGV[10] once         int   1: at most once, a lost run is not repeated
-- ARGV[11] force        int   1: whatever waits, due or not
-- ARGV[12] max_bytes    int   of one batch; a larger request goes alone
-- ARGV[13] counted      int   0: a worker made this doorbell for itself, it is not one of those out
-- ARGV[14] follows      int   1: this doorbell was answered by an earlier claim of the same run
--
-- Returns {"claimed", fence, now_ms, signals, route, lengths, rows}, where the rows are entry, record
-- of attempts and value of each request, all joined; {"busy"} (this doorbell's run is alive under
-- another token), {"ended"} (this run is over: the call arrived late), {"left"} (the doorbells that
-- are out are enough for what waits; only if `follows`), {"not_due", wait_ms}, {"empty"} or {"more"}:
-- it has cleared 10,000 entries of what waits no longer, and more lie behind; the doorbell is not
-- answered yet, the same call again goes on. The same token again gets the same batch.
-- Cost O(flush_every + cleared).
local items, pending, batch, claims, own = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local leases, groups, bells, routes = KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local attempts, delayed, eta, done = KEYS[10], KEYS[11], KEYS[12], KEYS[13]
local stale, stats = KEYS[14], KEYS[15]
local now_ms, group, token, bell, rung_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local flush_every, interval_ms = tonumber(ARGV[6]), tonumber(ARGV[7])
local lease_ms, limit_ms, once = tonumber(ARGV[8]), tonumber(ARGV[9]), ARGV[10] == '1'
local force, max_bytes, counted = ARGV[11] == '1', tonumber(ARGV[12]), ARGV[13] == '1'
local follows = ARGV[14] == '1'

local now = clock(now_ms)
local known = redis.call('HGET', claims, token)
local ended = redis.call('ZSCORE', done, token) or redis.call('ZSCORE', done, lost_token(token))
local running = redis.call('HGET', claims, 'bell:' .. bell)
local route = redis.call('HGET', routes, group) or ''
local waits_elsewhere = redis.call('ZCARD', delayed) + redis.call('ZCARD', eta) > 0
local fence = next_fence(stats, now)
local state = read_bells(redis.call('HGET', bells, group), now)
local waiting = redis.call('LLEN', pending)
local any_stale = redis.call('HLEN', stale) > 0
redis.call('LLEN', batch)
redis.call('ZCARD', leases)
redis.call('ZCARD', groups)
redis.call('HLEN', own)
redis.call('HLEN', items)
local tried_before = redis.call('HLEN', attempts) > 0

local function rows_of(entries, ids, values)
  local records = tried_before and call_many('HMGET', attempts, ids) or {}
  local rows, last = {}, 0
  for i, entry in ipairs(entries) do
    rows[last + 1], rows[last + 2], rows[last + 3] = entry, records[i] or '', values[i] or ''
    last = last + 3
  end
  return rows
end

if known then
  local claim = read_claim(known)
  local entries = owned_entries(batch, own, token)
  local ids = ids_of(entries)
  local rows = rows_of(entries, ids, call_many('HMGET', items, ids))
  return {'claimed', claim.fence, int(claim.started_ms), 0, claim.route, joined(rows)}
end
if ended then
  return {'ended'}
end
if bell ~= '' and running then
  local expiry = redis.call('ZSCORE', leases, running)
  if expiry and tonumber(expiry) > now then
    return {'busy'}
  end
end

if follows and waiting <= MAX_BELLS * flush_every then
  return {'left'}
end

-- Answers this doorbell: one fewer is out. If others were feared for, and this one was rung last of
-- all, then it has overtaken them: they are lost.
local function answer_bell()
  if bell == '' or not counted or follows then
    return
  end
  state.out = math.max(state.out - 1, 0)
  if state.feared and rung_ms >= state.rung_ms then
    state.out = 0
  end
  state.feared = state.feared and state.out > 0
  state.rung_ms, state.pause_ms = now, MIN_PAUSE_MS
  redis.call('HSET', bells, group, write_bells(state))
end

-- What was cancelled while it waited left an entry behind. Only of such ids is it noted which of
-- their entries are stale; what lies behind those that are noted is live.
local MAX_SKIPPED = 10 * CHUNK
local noted = {}
local function is_stale(id)
  if not any_stale then
    return false
  end
  noted[id] = noted[id] or redis.call('HGET', stale, group .. ':' .. id) or ''
  return string.sub(noted[id], 1, 1) == 's'
end

local function pass(id)
  if any_stale then
    noted[id] = string.sub(noted[id], 2)
  end
  return true
end

-- `kept` are entries that were passed, and stay all the same.
local function note_stale(kept)
  if not any_stale then
    return
  end
  for _, entry in ipairs(kept) do
    local _, _, id = read_entry(entry)
    noted[id] = 'l' .. noted[id]
  end
  local gone, remaining = {}, {}
  for id, marks in pairs(noted) do
    if string.find(marks, 's') then
      remaining[#remaining + 1] = group .. ':' .. id
      remaining[#remaining + 1] = marks
    else
      gone[#gone + 1] = group .. ':' .. id
    end
  end
  call_many('HDEL', stale, gone)
  call_many('HSET', stale, remaining)
end

-- Takes from the head what is still there and free: one split level, within the limits.
local taken, taken_ids, values, owners, seen = {}, {}, {}, {}, {}
local scanned, bytes, cut, level, most = 0, 0, false, nil, flush_every
local function take(entry, id, split, value, owner)
  if is_stale(id) or not value or owner or seen[id] then
    return pass(id)
  end
  if not level then
    level, most = split, split_limit(flush_every, split)
  end
  local count = #taken
  if split ~= level or count >= most then
    return false
  end
  cut = count > 0 and bytes + #value > max_bytes
  if cut then
    return false
  end
  bytes, seen[id] = bytes + #value, true
  taken[count + 1], taken_ids[count + 1], values[count + 1] = entry, id, value
  owners[2 * count + 1], owners[2 * count + 2] = id, token .. ':' .. read_nonce(value, id)
  return pass(id)
end

local open = waiting > 0
while open and scanned < waiting and scanned < flush_every + MAX_SKIPPED do
  local entries = redis.call('LRANGE', pending, scanned, scanned + math.min(flush_every, CHUNK) - 1)
  local ids, splits = ids_of(entries)
  local found, held = redis.call('HMGET', items, unpack(ids)), redis.call('HMGET', own, unpack(ids))
  for i, entry in ipairs(entries) do
    if not take(entry, ids[i], tonumber(splits[i]) or 0, found[i], held[i]) then
      open = false
      break
    end
    scanned = scanned + 1
  end
end

local full = #taken >= most or cut
local due = full or force or (#taken > 0 and is_due(taken[1], interval_ms, now))
if #taken == 0 or not due then
  -- Frees first: what is stale goes, what is not due stays.
  local skipped = scanned > #taken
  redis.call('LTRIM', pending, skipped and scanned or 0, -1)
  note_stale(taken)
  if skipped then
    put_first(pending, taken)
  end
  local more = open and scanned < waiting
  if not more then
    answer_bell()
  end
  arm(pending, groups, bells, group, flush_every, interval_ms, now, true)
  if more then
    return {'more'}
  end
  if redis.call('LLEN', pending) == 0 then
    return {'empty'}
  end
  local attention = tonumber(redis.call('ZSCORE', groups, group) or now)
  return {'not_due', int(math.max(attention - now, 0))}
end

redis.call('LTRIM', pending, scanned, -1)
note_stale({})
if cut then
  local since_ms, _, id = read_entry(redis.call('LINDEX', pending, 0))
  redis.call('LSET', pending, 0, write_entry(since_ms, level, id))
end
local deadline_ms = limit_ms > 0 and now + limit_ms or 0
open_claim(batch, claims, own, leases, stats, token, {
  group = group, fence = fence, started_ms = now, lease_ms = lease_ms, deadline_ms = deadline_ms,
  at_most_once = once, bell = bell, route = route,
}, taken, owners)
if bell ~= '' then
  redis.call('HSET', claims, 'bell:' .. bell, token)
end
redis.call('HINCRBY', stats, 'claimed', 1)
answer_bell()
local signals = arm(pending, groups, bells, group, flush_every, interval_ms, now)
if redis.call('LLEN', pending) == 0 and not waits_elsewhere then
  redis.call('HDEL', routes, group)
end
local rows = rows_of(taken, taken_ids, values)
return {'claimed', int(fence), int(now), signals, route, joined(rows)}
