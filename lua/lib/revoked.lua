-- revoked: a cancel finds requests, and revokes them, those that come later as well.
-- Uses: clock, records, values
-- Needs: group, token, dead, delayed, eta, stale, revoked, window

-- Where a request is, and its group.
local function place_of(id, value, owner, may_lease)
  if not value then
    return 'gone', ''
  end
  local its = first_of(value)
  if owner then
    return first_of(owner) == token and 'leased' or 'in_flight', its
  end
  if redis.call('ZSCORE', dead, its .. ':' .. id) then
    return 'dead', its
  end
  return its == group and may_lease and 'leased' or 'elsewhere', its
end

-- Remembers revoked ids, (expiry_ms, id)*, and forgets what is too old, or too much.
local function remember_revoked(remembered)
  -- Frees first, if only in name, so that it also works when the server is out of memory.
  local expired = redis.call('ZRANGEBYSCORE', revoked, '-inf', int(now), 'LIMIT', 0, #remembered)
  expired[#expired + 1] = ''
  call_many('ZREM', revoked, expired)
  call_many('ZADD', revoked, remembered)
  local excess = redis.call('ZCARD', revoked) - window
  if excess > 0 then
    redis.call('ZREMRANGEBYRANK', revoked, 0, excess - 1)
  end
end

-- Takes requests out of where they wait; returns how many were delayed. A pending list is not
-- searched: the entry that stays in it is noted as stale.
local function take_out(members)
  local unparked = 0
  for _, member in ipairs(members) do
    if redis.call('ZREM', delayed, member) + redis.call('ZREM', eta, member) > 0 then
      unparked = unparked + 1
    else
      local marks, changed = string.gsub(redis.call('HGET', stale, member) or '', 'l', 's')
      redis.call('HSET', stale, member, changed > 0 and marks or marks .. 's')
    end
  end
  return unparked
end
