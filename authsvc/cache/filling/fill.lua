-- Store a loaded record, unless its lease is gone or a newer row is already there.
-- KEYS[1] the record's key      KEYS[2] its lease, in the same slot
-- ARGV[1] the lease's token     ARGV[2] the record, JSON or packed
-- ARGV[3] row version (integer) ARGV[4] life of the record in milliseconds
-- Returns 1 if stored, else 0.
if redis.call('GET', KEYS[2]) ~= ARGV[1] then
  return 0
end
redis.call('DEL', KEYS[2])
local current = redis.call('GET', KEYS[1])
local version = current and row_version(current)
if version and version > tonumber(ARGV[3]) then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[4])
return 1
