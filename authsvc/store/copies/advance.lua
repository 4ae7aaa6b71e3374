-- Renew the freshness marker, or raise it, if neither it nor the last page of entries was lost since it was read.
-- KEYS[1] the marker's key   KEYS[2] the key of its position   KEYS[3] the seal behind the last page, if there is one
-- ARGV[1] the marker as it was read: a sequence number or a claim
-- ARGV[2] the sequence number that Redis has now been brought up to, or a claim that follows the one read
-- ARGV[3] life of the marker in milliseconds   ARGV[4] life of the seal
-- ARGV[5] the position that belongs to the number in ARGV[2]
-- Returns 1 if the marker now stands at ARGV[2] or higher, else 0.
if KEYS[3] and redis.call('PEXPIRE', KEYS[3], ARGV[4]) == 0 then
  return 0
end
local current = redis.call('GET', KEYS[1])
if not current then
  return 0
end
local number, read, reached = tonumber(current), tonumber(ARGV[1]), tonumber(ARGV[2])
if current ~= ARGV[1] and not (number and read and number >= read) then
  return 0
end
if not reached then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
elseif number and number > reached then
  -- A marker that others raised meanwhile was never lost, or was rebuilt from a log that had ARGV[2] in it.
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  redis.call('PEXPIRE', KEYS[2], ARGV[3])
else
  redis.call('SET', KEYS[1], string.format('%.0f', reached), 'PX', ARGV[3])
  redis.call('SET', KEYS[2], ARGV[5], 'PX', ARGV[3])
end
return 1
