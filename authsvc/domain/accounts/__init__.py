"""Account recovery, second factors, passkeys, and the mails and tickets that they need."""
