import { once } from 'node:events';
import { createServer } from 'node:http';
import { expect, test } from 'vitest';
import { PortTable } from '../../../agent/server/free-port.ts';
import { holdAny, listenersOn, ownerOf } from '../../../agent/server/port-owner.ts';
import { ProcessTable } from '../../../agent/server/process-table.ts';

test('no two servers that start at the same time get the same port', async () => {
  // So many that the kernel, which knows of no server before it binds, gives one of them twice.
  const ports = new PortTable('127.0.0.1');
  const leases = await Promise.all(Array.from({ length: 400 }, () => ports.take()));
  expect(new Set(leases.map(({ number }) => number)).size).toBe(leases.length);
  for (const lease of leases) lease[Symbol.dispose]();
});

test.each(['127.0.0.1', '0.0.0.0', '::'])('who listens on %s answers at 127.0.0.1, and is known', async (host) => {
  const server = createServer();
  await once(server.listen(0, host), 'listening');
  const address = server.address();
  const port = address !== null && typeof address === 'object' ? address.port : 0;
  const listeners = listenersOn(port);
  expect(listeners.size).toBe(1);
  expect(holdAny([process.pid], listeners)).toBe(true);
  expect(holdAny([process.ppid], listeners)).toBe(false);
  expect(ownerOf(listeners, new ProcessTable())).toMatchObject({ pid: process.pid });
  server.close();
  await once(server, 'close');
  expect(listenersOn(port).size).toBe(0);
});

test('who listens on another address of this machine does not answer at 127.0.0.1', async () => {
  const server = createServer();
  await once(server.listen(0, '127.0.0.2'), 'listening');
  const address = server.address();
  expect(listenersOn(address !== null && typeof address === 'object' ? address.port : 0).size).toBe(0);
  server.close();
  await once(server, 'close');
});
