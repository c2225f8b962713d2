-- letters: the end of dead letters.
-- Uses: routes, values
-- Needs: items, groups, attempts, errors, stats

-- Forgets requests that are no dead letters any more, given as group:id, and routes that only they
-- needed, but not that of one group. Returns how many.
local function forget_letters(members, but)
  local ids = {}
  for i, member in ipairs(members) do
    local group, id = string.match(member, '^([^:]*):(.*)$')
    ids[i] = id
    park(group, -1)
    if group ~= but then
      forget_route(group, redis.call('ZSCORE', groups, group))
    end
  end
  call_many('HDEL', items, ids)
  call_many('HDEL', attempts, ids)
  call_many('HDEL', errors, ids)
  if #ids > 0 then
    redis.call('HINCRBY', stats, 'dropped', #ids)
  end
  return #ids
end
