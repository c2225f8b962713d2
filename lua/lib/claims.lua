-- claims: the record of a run.

-- What a record says in the place of its fence once its run is dead: no run has it.
local NO_FENCE = '0'

-- A record of claims is group|fence|started_ms|lease_ms|deadline_ms|at_most_once|progress|bell|route.
-- The progress is empty for a batch that is whole; of one that is claimed in steps it is split,bytes
-- of what it has; of one that is taken back in steps, how many it held: seen,held while they are
-- counted.
local function read_claim(record)
  local group, fence, started_ms, lease_ms, deadline_ms, once, progress, bell, route =
    string.match(record or '', '^([^|]*)|(%d+)|(%d+)|(%d+)|(%d+)|(%d)|([^|]*)|([^|]*)|(.*)$')
  return {
    group = group or '', fence = fence or '0', started_ms = tonumber(started_ms or 0),
    lease_ms = tonumber(lease_ms or 0), deadline_ms = tonumber(deadline_ms or 0),
    at_most_once = once == '1', progress = progress or '', bell = bell or '', route = route or '',
  }
end

-- Whether a record is that of the claim which a run knows by its fence. A call of `claim` that was
-- held up for longer than its run is remembered starts another claim under the old token.
local function is_claim(record, fence)
  return record and read_claim(record).fence == fence
end
