-- admission: what becomes of a call that arrives, be it new, sent again, or made by its own batch.
-- Uses: attempts, clock, records
-- Needs: items, own, attempts, done, dead, stats, revoked, age_ms, caller, max_pending, window_ms

local backlog = redis.call('HLEN', items) - redis.call('ZCARD', dead)

-- Whether all that ended since these requests were first sent is still remembered. A tombstone that
-- went before its time, because there were too many, has left its expiry in `forgotten_ms`.
local sure = age_ms == 0
if not sure then
  local forgotten_ms = tonumber(redis.call('HGET', stats, 'forgotten_ms') or 0)
  sure = age_ms < window_ms and now - age_ms > forgotten_ms - window_ms
end

-- The verdict on a call: "new", "retry" of a request of the batch that it is made from, or "dead" if
-- a dead letter has its id, which are stored; or why it is not. `placed` is what this very push has
-- stored under its id, `stored` what was there before.
local function admit(id, nonce, placed, stored)
  local call = nonce == '' and id or nonce
  local known = placed or stored
  if known and read_nonce(known, id) == call then
    return 'again'
  end
  if redis.call('ZSCORE', done, call) then
    return 'done'
  end
  if placed then
    return 'duplicate'
  end
  local owner = stored and caller ~= '' and redis.call('HGET', own, id)
  if owner and first_of(owner) == caller then
    return 'retry'
  end
  if not sure then
    return 'forgotten'
  end
  if not stored then
    return backlog < max_pending and 'new' or 'full'
  end
  if redis.call('ZSCORE', dead, first_of(stored) .. ':' .. id) then
    return 'dead'
  end
  return 'duplicate'
end

-- Whether a call that is stored was revoked: it waits for nothing but to be told so. An id that
-- Celery made for this very call cannot have been revoked before it.
local function is_revoked(id, nonce, verdict)
  if verdict == 'retry' then
    return read_attempts(redis.call('HGET', attempts, id)).revoked == 1
  end
  return nonce ~= '' and tonumber(redis.call('ZSCORE', revoked, id) or 0) > now
end

-- The record of a call that is stored although it was revoked, or that its own batch made again: all
-- its runs are earlier ones then.
local function record_of(id, verdict, may_run)
  local record
  if verdict == 'retry' then
    local before, state = read_attempts(redis.call('HGET', attempts, id)), read_attempts('')
    state.earlier = 1 + before.tries + before.crashes + before.put_backs + before.postponed
      + before.earlier
    record = write_attempts(state)
  end
  return may_run and record or revoke_attempts(record)
end
