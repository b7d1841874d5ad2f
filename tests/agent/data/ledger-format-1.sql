-- What the first release of the agent left on a node's disk (sqlite3 ledger.db .dump).
BEGIN TRANSACTION;
CREATE TABLE attachment (
  network TEXT NOT NULL, container_id TEXT NOT NULL, ifname TEXT NOT NULL,
  address TEXT NOT NULL UNIQUE,
  netns TEXT NOT NULL, nic_mac TEXT NOT NULL, mtu INTEGER NOT NULL, boot_id TEXT NOT NULL, created REAL NOT NULL,
  pod_namespace TEXT, pod_name TEXT, pod_uid TEXT,
  PRIMARY KEY (network, container_id, ifname)
) STRICT;
INSERT INTO "attachment" VALUES('vnetpods','c5','eth0','10.240.0.5','/run/netns/n5','00:0d:3a:1b:c7:21',1500,'boot',5.0,'default','web-5','uid-5');
INSERT INTO "attachment" VALUES('vnetpods','c6','eth0','10.240.0.6','/run/netns/n6','00:0d:3a:1b:c7:21',1500,'boot',6.0,NULL,NULL,NULL);
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO "meta" VALUES('format','1');
INSERT INTO "meta" VALUES('readable_by','1');
CREATE TABLE rest (address TEXT PRIMARY KEY, since REAL NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO "rest" VALUES('10.240.0.7',12.5);
CREATE TABLE withdrawn (unit TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
INSERT INTO "withdrawn" VALUES('10.240.0.16/28');
COMMIT;
