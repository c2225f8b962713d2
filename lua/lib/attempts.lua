-- attempts: what a request went through before, as a record.
-- Uses: values

-- A record of attempts is
-- tries:crashes:alone:split:lost:tried_ms:revoked:put_backs:postponed:earlier:since_ms.
local function read_attempts(record)
  local tries, crashes, alone, split, lost, tried_ms, revoked, put_backs, postponed, earlier,
    since_ms = string.match(record or '',
      '^(%d+):(%d+):(%d+):(%d+):(%d):(%d+):(%d):(%d+):(%d+):(%d+):(%d+)$')
  return {
    tries = tonumber(tries or 0), crashes = tonumber(crashes or 0), alone = tonumber(alone or 0),
    split = tonumber(split or 0), lost = tonumber(lost or 0), tried_ms = tonumber(tried_ms or 0),
    revoked = tonumber(revoked or 0), put_backs = tonumber(put_backs or 0),
    postponed = tonumber(postponed or 0), earlier = tonumber(earlier or 0),
    since_ms = tonumber(since_ms or 0),
  }
end

local function write_attempts(state)
  return table.concat({
    state.tries, state.crashes, state.alone, state.split, state.lost, int(state.tried_ms),
    state.revoked, state.put_backs, state.postponed, state.earlier, int(state.since_ms),
  }, ':')
end

-- What a record says once its request is revoked: whoever claims it tells so, and does not run it.
local function revoke_attempts(record)
  local state = read_attempts(record)
  state.revoked = 1
  return write_attempts(state)
end
