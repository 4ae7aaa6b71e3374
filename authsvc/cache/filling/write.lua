-- Replace a record by what was just committed; if anybody wrote or invalidated meanwhile, drop it instead.
-- KEYS[1] the record's key      KEYS[2] its lease, in the same slot
-- ARGV[1] the lease's token     ARGV[2] the record, JSON or packed
-- ARGV[3] life of the record in milliseconds
-- Returns 1 if replaced, 0 if dropped.
local owner = redis.call('GET', KEYS[2])
redis.call('DEL', KEYS[2])
if owner == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  return 1
end
redis.call('DEL', KEYS[1])
return 0
