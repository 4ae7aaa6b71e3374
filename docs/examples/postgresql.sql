-- The role and the database of authsvc. As a superuser, where the file with the password can be read:
--   psql --file docs/examples/postgresql.sql postgresql://postgres@db.example.com/postgres
\set ON_ERROR_STOP on
\set password `cat /etc/authsvc/database_password`
CREATE ROLE authsvc LOGIN PASSWORD :'password';
CREATE DATABASE authsvc OWNER authsvc ENCODING 'UTF8' TEMPLATE template0;
-- Other roles of the server do not connect to it.
REVOKE ALL ON DATABASE authsvc FROM PUBLIC;
