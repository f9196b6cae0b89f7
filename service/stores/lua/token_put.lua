-- Share a token, with its expiry.
-- KEYS: token. ARGV: ms to keep, version, account, sealed value, refresh at, expires at. Returns 1.
redis.call('HSET', KEYS[1], 'version', ARGV[2], 'account', ARGV[3], 'sealed', ARGV[4], 'refresh', ARGV[5], 'expires', ARGV[6])
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
