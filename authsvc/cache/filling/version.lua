-- What the scripts behind it share.
-- Returns the row version in a stored record, JSON or packed; nil or false where it has none.
local function row_version(record)
  local packed = tonumber(string.match(record, '^z(%-?%d+):'))
  if packed then
    return packed
  end
  local readable, entry = pcall(cjson.decode, record)
  return readable and type(entry) == 'table' and tonumber(entry['_v'])
end
