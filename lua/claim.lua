-- claim: lease the oldest due requests of one group to one run of a worker.
-- Uses: ahead, batches, claiming, claims, clock, doorbells, rows, selection, trigger, values
--
-- KEYS[1]  items     hash   id -> group:nonce:size:envelope
-- KEYS[2]  pending   list   since_ms:split:size:id, oldest first
-- KEYS[3]  batch     list   the claimed entries of this token
-- KEYS[4]  claims    hash   token -> record; bell:id -> token
-- KEYS[5]  own       hash   id -> token:nonce
-- KEYS[6]  leases    zset!  token -> expiry (ms)
-- KEYS[7]  groups    zset!  group -> when it next wants attention (ms)
-- KEYS[8]  bells     hash   group -> outstanding:rung_ms:pause_ms:feared:fills
-- KEYS[9]  routes    hash   group -> where to ring for it (JSON)
-- KEYS[10] attempts  hash   id -> record of attempts
-- KEYS[11] done      zset   nonce or token -> expiry (ms)
-- KEYS[12] stale     hash   group:id -> its entries from the head: s stale, l live
-- KEYS[13] stats     hash   counters
-- KEYS[14] parked    hash!  group -> its delayed requests and dead letters
-- ARGV[1]  now_ms      int   empty: the server's time
-- ARGV[2]  group       text
-- ARGV[3]  token       text  a fresh nonce of this run
-- ARGV[4]  bell        text  id of the doorbell that woke the worker, or empty
-- ARGV[5]  rung_ms     int   when it was rung; 0: not known
-- ARGV[6]  trigger     text  the claimer's own: no batch is larger
-- ARGV[7]  lease_ms    int
-- ARGV[8]  limit_ms    int   a run may not take longer; 0: no limit
-- ARGV[9]  once        flag  at most once: a lost run is not repeated
-- ARGV[10] force       flag  whatever waits, due or not
-- ARGV[11] max_bytes   int   of one batch; a larger request goes alone
-- ARGV[12] counted     flag  0: a worker made this doorbell for itself, it is not one of those out
-- ARGV[13] follows     flag  this doorbell was answered by an earlier claim of the same run
-- ARGV[14] got         int   how much of this batch the caller has, as "part" said; 0 at first
-- ARGV[15] step        int   requests that one call takes at most
-- ARGV[16] step_bytes  int   and their bytes, unless a single one is larger
--
-- Returns {"claimed", fence, now_ms, signals, route, lengths, rows}  a batch, or the last step of one
--         {"part", fence, now_ms, got, route, lengths, rows}  the same call with that `got` goes on
--         {"busy"}              this doorbell's run is alive under another token
--         {"ended"}             this run is over: the call arrived late
--         {"left"}              the doorbells that are out are enough; only if `follows`
--         {"not_due", wait_ms}
--         {"empty"}
--         {"more"}              thousands that wait no longer were cleared: the same call again goes on
-- The rows are entry, record of attempts and value of each request, all joined. Until the end of a
-- batch of several steps, and until what waits no longer is cleared, its doorbell counts as out. The
-- same token again gets the same batch. Nothing is read that is not taken: the entries tell how large
-- it is. Cost O(step + cleared). The first call of a batch of several steps that is not yet due by
-- its age looks at O(flush_every) entries.

local known = redis.call('HGET', claims, token)
local claim = known and read_claim(known)
local running = redis.call('HGET', claims, 'bell:' .. bell)
local ended = redis.call('ZSCORE', done, token) or redis.call('ZSCORE', done, lost_token(token))
local fence, held = next_fence(), redis.call('LLEN', batch)
local route, rung = redis.call('HGET', routes, group), read_bells(redis.call('HGET', bells, group))
if ended or claim and claim.fence == NO_FENCE then
  return {'ended'}
end

-- What an earlier call of this token took, and its caller has not heard of.
if claim and (claim.progress == '' or got < held) then
  local rows, has = read_step()
  if claim.progress == '' and has >= held then
    return {'claimed', claim.fence, int(claim.started_ms), 0, claim.route, joined(rows)}
  end
  return {'part', claim.fence, int(claim.started_ms), has, claim.route, joined(rows)}
end

-- What others do already, or were rung for.
local expiry = not claim and bell ~= '' and running and redis.call('ZSCORE', leases, running)
if expiry and tonumber(expiry) > now then
  return {'busy'}
end
if not claim and follows and waiting <= MAX_BELLS * flush_every then
  return {'left'}
end

local chosen = choose(claim, held)
local count = #chosen.entries
local due = claim or chosen.full or force or (count > 0 and is_due(chosen.entries[1]))
if not due and chosen.paused then
  due = fills_up(chosen)
end
guard()
if not due or not claim and count == 0 then
  return leave(chosen, rung)
end
claim = claim or {
  group = group, fence = fence, started_ms = now, lease_ms = lease_ms, at_most_once = once,
  deadline_ms = limit_ms > 0 and now + limit_ms or 0, bell = bell, route = route or '',
}
return lease(claim, chosen, rung)
