-- Renew the freshness marker if it is exactly the one expected; for when SQL cannot be asked.
-- KEYS[1] the marker's key   KEYS[2] the key of its position
-- ARGV[1] the marker expected   ARGV[2] life of the marker in milliseconds
-- Returns 1 if renewed, else 0.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
