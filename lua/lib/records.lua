-- records: requests as they are stored, and their entries in lists.
-- Uses: values

-- The split level of an entry that was never given back.
local FRESH = '-'

-- An entry of a pending list is since_ms:split:size:id; the size is that of its request, in bytes.
local function read_entry(entry)
  local since_ms, split, size, id = string.match(entry, '^(%d+):([^:]*):(%d*):(.*)$')
  return tonumber(since_ms or 0), split or '0', id or '', size or ''
end

local function ids_of(entries)
  local ids, splits, sizes = {}, {}, {}
  for i, entry in ipairs(entries) do
    local split, size, id = string.match(entry, '^%d+:([^:]*):(%d*):(.*)$')
    ids[i], splits[i], sizes[i] = id or '', split or '0', size or ''
  end
  return ids, splits, sizes
end

local function write_entry(since_ms, split, size, id)
  return int(since_ms) .. ':' .. split .. ':' .. size .. ':' .. id
end

-- A value of items is group:nonce:size:envelope; an empty nonce means that the id is the call's own,
-- an empty size that the envelope is as large as what a worker will hold of it.
local function read_nonce(value, id)
  local nonce = string.match(value, '^[^:]*:([^:]*):')
  return (nonce == nil or nonce == '') and id or nonce
end

-- The bytes that a worker will hold of a stored request; more than are stored if it is compressed.
local function read_size(value)
  local size = string.match(value, '^[^:]*:[^:]*:(%d*):')
  return math.max(tonumber(size or '') or 0, #value)
end

-- The group of a value, and of a group:id; the token of an owner.
local function first_of(text)
  return string.match(text, '^[^:]*')
end
