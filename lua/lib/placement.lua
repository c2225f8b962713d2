-- placement: what a push is to write, call by call.
-- Uses: admission, clock, records, values
-- Needs: group, requests, window_ms

-- Calls that are stored; those that take the place of another one, and what goes with that: its
-- owner, or a dead letter.
local plan = {
  placed = {}, stores = {}, entries = {}, etas = {}, records = {}, new = 0, revoked = 0,
  replaced = {}, released = {}, letters = {}, tombstones = {},
}
local since = int(now) .. ':' .. FRESH .. ':'

-- Places one of the calls; `stored` is what has its id.
local function place(i, verdict, stored)
  local id, nonce, eta_ms, size, envelope = unpack(requests, 5 * i - 4, 5 * i)
  local value = group .. ':' .. nonce .. ':' .. size .. ':' .. envelope
  local stores, entries, etas = plan.stores, plan.entries, plan.etas
  plan.placed[id], stores[#stores + 1], stores[#stores + 2] = value, id, value
  if verdict == 'new' then
    backlog, plan.new = backlog + 1, plan.new + 1
  else
    local replaced, tombstones = plan.replaced, plan.tombstones
    replaced[#replaced + 1] = id
    tombstones[#tombstones + 1] = int(now + window_ms)
    tombstones[#tombstones + 1] = read_nonce(stored, id)
  end
  if verdict == 'retry' then
    plan.released[#plan.released + 1] = id
  elseif verdict == 'dead' then
    plan.letters[#plan.letters + 1] = first_of(stored) .. ':' .. id
  end
  local may_run = not is_revoked(id, nonce, verdict)
  if not may_run or verdict == 'retry' then
    local records = plan.records
    records[#records + 1], records[#records + 2] = id, record_of(id, verdict, may_run)
  end
  if not may_run and verdict ~= 'retry' then
    plan.revoked = plan.revoked + 1
  end
  if may_run and eta_ms ~= '' and tonumber(eta_ms) > now then
    etas[#etas + 1] = eta_ms
    etas[#etas + 1] = group .. ':' .. id
  else
    entries[#entries + 1] = since .. (size == '' and #value or size) .. ':' .. id
  end
end
