-- cancel: lease what waits or is delayed to whoever revokes it, and mark what runs.
-- Uses: attempts, batches, claims, clock, records, revoked, routes, values
--
-- KEYS[1]  items     hash   id -> group:nonce:size:envelope
-- KEYS[2]  pending   list   since_ms:split:size:id, oldest first
-- KEYS[3]  batch     list!  the claimed entries of this token
-- KEYS[4]  claims    hash   token -> record; bell:id -> token
-- KEYS[5]  own       hash   id -> token:nonce
-- KEYS[6]  leases    zset!  token -> expiry (ms)
-- KEYS[7]  routes    hash   group -> where to ring for it (JSON)
-- KEYS[8]  attempts  hash   id -> record of attempts
-- KEYS[9]  delayed   zset!  group:id -> ready (ms)
-- KEYS[10] eta       zset!  group:id -> wall clock (ms)
-- KEYS[11] dead      zset!  group:id -> died (ms)
-- KEYS[12] done      zset   nonce or token -> expiry (ms)
-- KEYS[13] revoked   zset!  id -> expiry (ms)
-- KEYS[14] stale     hash!  group:id -> its entries from the head: s stale, l live
-- KEYS[15] stats     hash   counters
-- KEYS[16] parked    hash!  group -> its delayed requests and dead letters
-- ARGV[1]  now_ms     int   empty: the server's time
-- ARGV[2]  group      text  of the requests to lease, or empty to ask for theirs
-- ARGV[3]  token      text  a fresh nonce of this call
-- ARGV[4]  lease_ms   int
-- ARGV[5]  window_ms  int   how long an id stays revoked after its request has ended
-- ARGV[6]  window     int   how many ids are remembered
-- ARGV[7+] ids        list  no id twice, at most 100
--
-- Returns {"cancelled", fence, started_ms, route, places, lengths, rows}
--         {"ended"}  this call is over: it arrived late
-- The places are {(id, place, group)*}, where a place is "leased", "in_flight", "dead", "gone" or
-- "elsewhere": it waits in another group. The rows are those of the requests that are leased now, as
-- claim has them. What is marked is not run again, whoever claims it: so if the canceller dies, or
-- what it found running is retried, the next claimer tells that it was revoked. A pending list is not
-- searched: the entry that stays in it is noted as stale, and claims skip it. The same token again
-- gets the same lease. Cost O(ids log n).

local known = redis.call('HGET', claims, token)
local ended = redis.call('ZSCORE', done, token) or redis.call('ZSCORE', done, lost_token(token))
local values, owners = call_many('HMGET', items, ids), call_many('HMGET', own, ids)
local records = call_many('HMGET', attempts, ids)
local route = redis.call('HGET', routes, group) or ''
local fence = next_fence()
local waits = redis.call('LLEN', pending) > 0
if ended then
  return {'ended'}
end

local places, marks, remembered, rows, entries, held, members = {}, {}, {}, {}, {}, {}, {}
local newly_revoked = 0
for i, id in ipairs(ids) do
  local place, its = place_of(id, values[i], owners[i], not known)
  places[#places + 1], places[#places + 2], places[#places + 3] = id, place, its
  if place == 'leased' or place == 'in_flight' then
    newly_revoked = newly_revoked + 1 - read_attempts(records[i]).revoked
    records[i] = revoke_attempts(records[i])
    marks[#marks + 1], marks[#marks + 2] = id, records[i]
  end
  if place ~= 'elsewhere' then
    remembered[#remembered + 1] = int(now + window_ms)
    remembered[#remembered + 1] = id
  end
  if place == 'leased' then
    local split = read_attempts(records[i]).split
    -- Since when it waits is not known here; 0 keeps what its last run told from looking older.
    local entry = write_entry(0, split, '', id)
    rows[#rows + 1], rows[#rows + 2], rows[#rows + 3] = entry, records[i], values[i]
    if not owners[i] then
      entries[#entries + 1] = entry
      held[#held + 1], held[#held + 2] = id, token .. ':' .. read_nonce(values[i], id)
      members[#members + 1] = group .. ':' .. id
    end
  end
end

guard()
remember_revoked(remembered)
park(group, -take_out(members))
call_many('HSET', attempts, marks)
if newly_revoked > 0 then
  redis.call('HINCRBY', stats, 'revoked', newly_revoked)
end
if known then
  local claim = read_claim(known)
  return {'cancelled', claim.fence, int(claim.started_ms), claim.route, places, joined(rows)}
end
if #entries > 0 then
  open_claim({
    group = group, fence = fence, started_ms = now, lease_ms = lease_ms, deadline_ms = 0,
    at_most_once = false, progress = '', bell = '', route = route,
  }, now + lease_ms, entries, held)
  redis.call('HSET', stats, 'fence', int(fence))
end
forget_route(group, waits)
return {'cancelled', int(fence), int(now), route, places, joined(rows)}
