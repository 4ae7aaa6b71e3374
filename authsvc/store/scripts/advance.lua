-- Renew the freshness marker, or raise it, if it has not been lost since it was read.
-- KEYS[1] the marker's key
-- ARGV[1] the marker as it was read: a sequence number or a claim
-- ARGV[2] the sequence number that Redis has now been brought up to
-- ARGV[3] life of the marker in milliseconds
-- Returns 1 if the marker now stands at ARGV[2] or higher, else 0.
local current = redis.call('GET', KEYS[1])
if not current then
  return 0
end
local number, read, reached = tonumber(current), tonumber(ARGV[1]), tonumber(ARGV[2])
if current ~= ARGV[1] and not (number and read and number >= read) then
  return 0
end
-- A marker that others raised meanwhile was never lost, or was rebuilt from a log that had ARGV[2] in it.
redis.call('SET', KEYS[1], string.format('%.0f', math.max(number or 0, reached)), 'PX', ARGV[3])
return 1
