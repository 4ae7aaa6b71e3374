-- Renew the freshness marker, or raise it, if neither it nor the last page of entries was lost since it was read.
-- KEYS[1] the marker's key      KEYS[2] the seal behind the page, if there was one
-- ARGV[1] the marker as it was read: a sequence number or a claim
-- ARGV[2] the sequence number that Redis has now been brought up to, or a claim that follows the one read
-- ARGV[3] life of the marker in milliseconds
-- Returns 1 if the marker now stands at ARGV[2] or higher, else 0.
if KEYS[2] and redis.call('EXISTS', KEYS[2]) == 0 then
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
-- A marker that others raised meanwhile was never lost, or was rebuilt from a log that had ARGV[2] in it.
local marker = reached and string.format('%.0f', math.max(number or 0, reached)) or ARGV[2]
redis.call('SET', KEYS[1], marker, 'PX', ARGV[3])
return 1
