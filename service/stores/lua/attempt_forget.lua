-- Stop counting an attempt that succeeded, and all before it; those after it may be wrong ones. If it no longer counts, all
-- that count now came after it. KEYS: attempts that count. ARGV: attempt. Returns 1.
local order = redis.call('ZSCORE', KEYS[1], ARGV[1])
if order then redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', order) end
return 1
