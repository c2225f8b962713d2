-- store: write states of calls into a Redis result backend, all of them or none.
--
-- KEYS[1+] states  string  as Celery stores them, one per call; at most 500
-- ARGV[1+] rows    list    for each state what was read of it, empty if there was none; seconds after
--                          which it is forgotten, 0 for never; what to write
--
-- It writes and publishes what Celery's backend does. Returns {"stored"}, or {"changed"}: one is
-- another state than was read, so all have to be read again; also if the reply was lost.
local states, rows = KEYS, ARGV

for i, stored in ipairs(redis.call('MGET', unpack(states))) do
  if (stored or '') ~= rows[3 * i - 2] then
    return {'changed'}
  end
end
for i, state in ipairs(states) do
  local expires, value = rows[3 * i - 1], rows[3 * i]
  if expires ~= '0' then
    redis.call('SETEX', state, expires, value)
  else
    redis.call('SET', state, value)
  end
  -- Not before: nobody may hear of a state that the server then refuses to store.
  redis.call('PUBLISH', state, value)
end
return {'stored'}
