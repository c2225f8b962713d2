-- extend: keep the lease on a batch.
-- Uses: claims, clock, values
--
-- KEYS[1] claims  hash   token -> record; bell:id -> token
-- KEYS[2] leases  zset!  token -> expiry (ms)
-- ARGV[1] now_ms    int   empty: the server's time
-- ARGV[2] token     text
-- ARGV[3] fence     text  of the claim
-- ARGV[4] lease_ms  int
--
-- Returns {"extended", expiry_ms}
--         {"overdue"}              past the run's hard deadline
--         {"lost"}                 the claim ended or was taken back, and the run must stop
-- Cost O(log claims).

local record = redis.call('HGET', claims, token)
if not is_claim(record, fence) then
  return {'lost'}
end
local deadline_ms = read_claim(record).deadline_ms
if deadline_ms > 0 and now > deadline_ms then
  return {'overdue'}
end
guard()
-- Frees first, so that it also works when the server is out of memory.
redis.call('ZREM', leases, token)
redis.call('ZADD', leases, int(now + lease_ms), token)
return {'extended', int(now + lease_ms)}
