-- claim: lease the oldest due requests of one group to one run of a worker.
--
-- KEYS[1]  items     hash  id -> group:nonce:size:envelope
-- KEYS[2]  pending   list  since_ms:split:size:id, oldest first
-- KEYS[3]  batch     list  the claimed entries of this token
-- KEYS[4]  claims    hash  token -> record; bell:id -> token
-- KEYS[5]  own       hash  id -> token:nonce
-- KEYS[6]  leases    zset  token -> expiry (ms)
-- KEYS[7]  groups    zset  group -> when it next wants attention (ms)
-- KEYS[8]  bells     hash  group -> outstanding:rung_ms:pause_ms:feared:fills
-- KEYS[9]  routes    hash  group -> where to ring for it (JSON)
-- KEYS[10] attempts  hash  id -> record of attempts
-- KEYS[11] done      zset  nonce or token -> expiry (ms)
-- KEYS[12] stale     hash  group:id -> its entries from the head: s stale, l live
-- KEYS[13] stats     hash  counters
-- KEYS[14] parked    hash  group -> its delayed requests and dead letters
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
-- ARGV[15] got          int   how much of this batch the caller has, as "part" said; 0 at first
-- ARGV[16] step         int   requests that one call takes at most
-- ARGV[17] step_bytes   int   and their bytes, unless a single one is larger
--
-- Returns {"claimed", fence, now_ms, signals, route, lengths, rows}, where the rows are entry, record
-- of attempts and value of each request, all joined; {"part", fence, now_ms, got, route, lengths,
-- rows} of a batch that is more than a step: the same call with that `got` goes on, and until the end
-- its doorbell counts as out; {"busy"} (this doorbell's run is alive under another token), {"ended"}
-- (this run is over: the call arrived late), {"left"} (the doorbells that are out are enough for what
-- waits; only if `follows`), {"not_due", wait_ms}, {"empty"} or {"more"}: it has cleared thousands of
-- entries of what waits no longer, and more lie behind; the doorbell is not answered yet, the same
-- call again goes on. The same token again gets the same batch. Nothing is read that is not taken:
-- the entries tell how large it is. Cost O(step + cleared). The first call of a batch of
-- several steps that is not yet due by its age looks at O(flush_every) entries.
local items, pending, batch, claims, own = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local leases, groups, bells, routes = KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local attempts, done, stale, stats, parked = KEYS[10], KEYS[11], KEYS[12], KEYS[13], KEYS[14]
local now_ms, group, token, bell, rung_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local flush_every, interval_ms = tonumber(ARGV[6]), tonumber(ARGV[7])
local lease_ms, limit_ms, once = tonumber(ARGV[8]), tonumber(ARGV[9]), ARGV[10] == '1'
local force, max_bytes, counted = ARGV[11] == '1', tonumber(ARGV[12]), ARGV[13] == '1'
local follows, got = ARGV[14] == '1', tonumber(ARGV[15])
local step, step_bytes = tonumber(ARGV[16]), tonumber(ARGV[17])

local now = clock(now_ms)
local known = redis.call('HGET', claims, token)
local ended = redis.call('ZSCORE', done, token) or redis.call('ZSCORE', done, lost_token(token))
local running = redis.call('HGET', claims, 'bell:' .. bell)
local route = redis.call('HGET', routes, group) or ''
local next_one = next_fence(stats, now)
local state = read_bells(redis.call('HGET', bells, group), now)
local waiting = redis.call('LLEN', pending)
local any_stale = redis.call('HLEN', stale) > 0
local held = redis.call('LLEN', batch)
redis.call('ZCARD', leases)
redis.call('ZCARD', groups)
redis.call('HLEN', own)
redis.call('HLEN', items)
redis.call('HLEN', parked)
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

-- The size of a request that waits; what comes back from a delay has it not in its entry.
local function size_of(id, size)
  return tonumber(size) or redis.call('HSTRLEN', items, id)
end

-- How many of some requests, of one level and at least one, are together not larger than that.
local function count_fitting(ids, splits, sizes, bytes)
  local sum = 0
  for i, id in ipairs(ids) do
    sum = sum + size_of(id, sizes[i])
    if i > 1 and (sum > bytes or splits[i] ~= splits[1]) then
      return i - 1
    end
  end
  return #ids
end

if ended then
  return {'ended'}
end
local claim = known and read_claim(known)
if claim and claim.fence == NO_FENCE then
  return {'ended'}
end
local is_whole = claim and claim.progress == ''
if claim and (is_whole or got < held) then
  -- The caller has not heard of what it took.
  local entries = redis.call('LRANGE', batch, got, got + step - 1)
  local ids, splits, sizes = ids_of(entries)
  local count = count_fitting(ids, splits, sizes, step_bytes)
  ids = {unpack(ids, 1, count)}
  local mine, mine_ids = {}, {}
  for i, owner in ipairs(call_many('HMGET', own, ids)) do
    if owner and string.match(owner, '^[^:]*') == token then
      mine[#mine + 1], mine_ids[#mine_ids + 1] = entries[i], ids[i]
    end
  end
  local rows = rows_of(mine, mine_ids, call_many('HMGET', items, mine_ids))
  if is_whole and got + count >= held then
    return {'claimed', claim.fence, int(claim.started_ms), 0, claim.route, joined(rows)}
  end
  return {'part', claim.fence, int(claim.started_ms), got + count, claim.route, joined(rows)}
end
if not claim and bell ~= '' and running then
  local expiry = redis.call('ZSCORE', leases, running)
  if expiry and tonumber(expiry) > now then
    return {'busy'}
  end
end

if not claim and follows and waiting <= MAX_BELLS * flush_every then
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
  state.rung_ms, state.pause_ms, state.fills = now, MIN_PAUSE_MS, flush_every
  redis.call('HSET', bells, group, write_bells(state))
end

-- What was cancelled while it waited left an entry behind. Only of such ids is it noted which of
-- their entries are stale; what lies behind those that are noted is live.
local MAX_SKIPPED = 5 * CHUNK
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
local scanned, bytes, cut, level, most, had = 0, 0, false, nil, flush_every, 0
if claim then
  local split, size = string.match(claim.progress, '^(%d+),(%d+)$')
  level, bytes, had = tonumber(split), tonumber(size), held
  most = split_limit(flush_every, level)
end
local began_with = bytes

local function take(entry, id, split, value, owner)
  if is_stale(id) or not value or owner or seen[id] then
    return pass(id)
  end
  if not level then
    level, most = split, split_limit(flush_every, split)
  end
  local count, size = #taken, read_size(value)
  if split ~= level or had + count >= most then
    return false
  end
  cut = had + count > 0 and bytes + size > max_bytes
  if cut then
    return false
  end
  bytes, seen[id] = bytes + size, true
  taken[count + 1], taken_ids[count + 1], values[count + 1] = entry, id, value
  owners[2 * count + 1], owners[2 * count + 2] = id, token .. ':' .. read_nonce(value, id)
  return pass(id)
end

-- Whether a request waits in earnest: if so it is read when its turn comes, and not before.
local function is_there(id)
  return not is_stale(id) and not seen[id]
    and redis.call('HSTRLEN', items, id) > 0 and redis.call('HEXISTS', own, id) == 0
end

-- Whether what lies ahead makes the batch full; reads entries only.
local function fills_up()
  local ahead, count, size, marks, met = scanned, #taken, bytes, {}, {}
  -- One that is too large by itself is full only if another one waits behind it.
  while count < most and (size <= max_bytes or count == #taken) and ahead < waiting do
    local entries = redis.call('LRANGE', pending, ahead, ahead + CHUNK - 1)
    local ids, splits, sizes = ids_of(entries)
    local owned = call_many('HMGET', own, ids)
    for i, id in ipairs(ids) do
      if any_stale then
        marks[id] = marks[id] or noted[id] or redis.call('HGET', stale, group .. ':' .. id) or ''
      end
      if any_stale and string.sub(marks[id], 1, 1) == 's' then
        marks[id] = string.sub(marks[id], 2)
      elseif seen[id] or met[id] or owned[i] or redis.call('HSTRLEN', items, id) == 0 then
        -- It counts for nothing: it is there twice, runs already, or is gone.
        met[id] = true
      elseif (tonumber(splits[i]) or 0) == level then
        count, size, met[id] = count + 1, size + size_of(id, sizes[i]), true
      else
        return false
      end
    end
    ahead = ahead + #entries
  end
  return count >= most or (size > max_bytes and count > #taken)
end

-- Takes out of what lies ahead what waits no longer; returns what stays. Else it would count for
-- a full batch, and be rung for without end.
local function clean_ahead()
  local kept, last = {}, math.min(waiting, scanned + flush_every + MAX_SKIPPED)
  while scanned < last do
    local entries = redis.call('LRANGE', pending, scanned, math.min(scanned + CHUNK, last) - 1)
    for i, id in ipairs((ids_of(entries))) do
      if is_there(id) then
        kept[#kept + 1], seen[id] = entries[i], true
      end
      pass(id)
    end
    scanned = scanned + #entries
  end
  return kept
end

local open, paused = waiting > 0, false
while open and not paused and scanned < waiting and scanned < flush_every + MAX_SKIPPED do
  local wanted = math.min(level and most - had - #taken or flush_every, step - #taken, CHUNK)
  local entries = redis.call('LRANGE', pending, scanned, scanned + wanted - 1)
  local ids, splits, sizes = ids_of(entries)
  local left, step_left = max_bytes - bytes, step_bytes - (bytes - began_with)
  local first, other = size_of(ids[1], sizes[1]), level and (tonumber(splits[1]) or 0) ~= level
  if level and (first > left or other) and is_there(ids[1]) then
    cut, open = not other, false
  elseif #taken > 0 and first > step_left then
    if is_there(ids[1]) then
      paused = true
    else
      take(entries[1], ids[1], 0, nil, nil)
      scanned = scanned + 1
    end
  else
    local count = count_fitting(ids, splits, sizes, math.min(left, step_left))
    local found = redis.call('HMGET', items, unpack(ids, 1, count))
    local owned = redis.call('HMGET', own, unpack(ids, 1, count))
    for i = 1, count do
      if not take(entries[i], ids[i], tonumber(splits[i]) or 0, found[i], owned[i]) then
        open = false
        break
      end
      scanned = scanned + 1
    end
  end
  open = open and (not level or had + #taken < most)
  paused = paused or #taken >= step
end
paused = (paused or claim) and open and scanned < waiting

local full = had + #taken >= most or cut
local due = claim or full or force or (#taken > 0 and is_due(taken[1], interval_ms, now))
if not due and paused then
  due = fills_up()
end
if not claim and #taken == 0 or not due then
  -- Frees first: what is stale goes, what is not due stays.
  local ahead = paused and waiting >= flush_every and clean_ahead() or {}
  for _, entry in ipairs(ahead) do
    taken[#taken + 1] = entry
  end
  local skipped = scanned > #taken
  redis.call('LTRIM', pending, skipped and scanned or 0, -1)
  note_stale(taken)
  if skipped then
    put_first(pending, taken)
  end
  local more = open and not paused and scanned < waiting
  if not more then
    answer_bell()
  end
  arm(pending, groups, bells, group, flush_every, interval_ms, now, true)
  if more then
    return {'more'}
  end
  if redis.call('LLEN', pending) == 0 then
    forget_route(routes, parked, group, false)
    return {'empty'}
  end
  local attention = tonumber(redis.call('ZSCORE', groups, group) or now)
  return {'not_due', int(math.max(attention - now, 0))}
end

redis.call('LTRIM', pending, scanned, -1)
note_stale({})
if cut then
  local since_ms, _, id, size = read_entry(redis.call('LINDEX', pending, 0))
  redis.call('LSET', pending, 0, write_entry(since_ms, level, size, id))
end
claim = claim or {
  group = group, fence = next_one, started_ms = now, lease_ms = lease_ms,
  deadline_ms = limit_ms > 0 and now + limit_ms or 0, at_most_once = once, bell = bell,
  route = route,
}
claim.progress = paused and level .. ',' .. int(bytes) or ''
open_claim(batch, claims, own, leases, token, claim, now + lease_ms, taken, owners)
if not known then
  redis.call('HSET', stats, 'fence', int(claim.fence))
end
if bell ~= '' then
  redis.call('HSET', claims, 'bell:' .. bell, token)
end
local rows = rows_of(taken, taken_ids, values)
if paused then
  arm(pending, groups, bells, group, flush_every, interval_ms, now, true)
  return {'part', int(claim.fence), int(claim.started_ms), had + #taken, claim.route, joined(rows)}
end
redis.call('HINCRBY', stats, 'claimed', 1)
answer_bell()
local signals = arm(pending, groups, bells, group, flush_every, interval_ms, now)
forget_route(routes, parked, group, redis.call('LLEN', pending) > 0)
return {'claimed', int(claim.fence), int(claim.started_ms), signals, claim.route, joined(rows)}
