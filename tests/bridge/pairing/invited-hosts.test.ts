import { once } from 'node:events';
import { mkdir, mkdtemp, readdir, rm } from 'node:fs/promises';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pino } from 'pino';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { invitedHosts } from '../../../bridge/pairing/invited-hosts.ts';

const never = new AbortController().signal;
let stateDir: string;
beforeEach(async () => {
  stateDir = await mkdtemp(join(tmpdir(), 'gantry-invited-'));
});
afterEach(() => rm(stateDir, { recursive: true, force: true }));

/** A directory of this name takes no file. */
async function inTheWay(): Promise<string> {
  const [key = ''] = await readdir(join(stateDir, 'paired'));
  return join(stateDir, 'paired', key, 'host.json');
}

const PAIRED = { token: 'gnt_x', role: 'operator', agentId: 'a' };

/** An agent that takes a code once, or answers `what`. `meanwhile` happens before. */
async function agent(
  meanwhile: () => Promise<void>,
  what: { status: number; body: object } = { status: 200, body: PAIRED },
): Promise<{ line: string; asked: () => number } & AsyncDisposable> {
  let asked = 0;
  const answer = async (_: IncomingMessage, response: ServerResponse): Promise<void> => {
    asked += 1;
    await meanwhile();
    response.writeHead(what.status).end(JSON.stringify(what.body));
  };
  const server = createServer((request, response) => void answer(request, response));
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const { port } = server.address() as AddressInfo; // it listens on TCP
  return {
    line: `gantry://127.0.0.1:${port}?tls=off&code=ABCD-EFGH`,
    asked: () => asked,
    [Symbol.asyncDispose]: async () => {
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };
}

function reach(line: string) {
  const log = pino({ level: 'silent' });
  const [host] = invitedHosts([line], { stateDir, taken: [], clientName: () => 'test', log });
  if (host?.reach === undefined) throw new Error('it is paired at its first use');
  return host.reach;
}

test('a token that cannot be written is not lost: the code is spent, so it is used and written later', async () => {
  await using box = await agent(async () => {
    await mkdir(await inTheWay());
  });
  const first = reach(box.line);
  expect(await first(never)).toMatchObject({ token: 'gnt_x' });
  expect(await first(never)).toMatchObject({ token: 'gnt_x' });
  await rm(await inTheWay(), { recursive: true });
  expect(await first(never)).toMatchObject({ token: 'gnt_x' });
  expect(await reach(box.line)(never)).toMatchObject({ token: 'gnt_x' }); // another bridge
  expect(box.asked()).toBe(1);
});

test('a code that was refused is not shown again: each time would count as one more guess', async () => {
  const refused = { status: 401, body: { error: { code: 'AUTH_FAILED', message: 'The code is spent.' } } };
  await using box = await agent(async () => undefined, refused);
  const invited = reach(box.line);
  for (let tries = 0; tries < 3; tries += 1)
    await expect(invited(never)).rejects.toThrow(/in GANTRY_HOSTS cannot be used .*The code is spent\./);
  expect(box.asked()).toBe(1);
});
