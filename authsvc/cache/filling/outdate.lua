-- Invalidate a record, unless it is at least as new as the change that made others out of date.
-- KEYS[1] the record's key      KEYS[2] its lease, in the same slot
-- ARGV[1] row version of the change (integer)
-- Returns 1 if a record was dropped, else 0.
redis.call('DEL', KEYS[2])
-- A key of another type is no record, and goes.
local current = redis.pcall('GET', KEYS[1])
local version = type(current) == 'string' and row_version(current)
if version and version >= tonumber(ARGV[1]) then
  return 0
end
return redis.call('DEL', KEYS[1])
