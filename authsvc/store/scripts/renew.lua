-- Renew the freshness marker if it is exactly the one expected; for when SQL cannot be asked.
-- KEYS[1] the marker's key
-- ARGV[1] the marker expected   ARGV[2] life of the marker in milliseconds
-- Returns 1 if renewed, else 0.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
