import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pino } from 'pino';
import { expect, test } from 'vitest';
import { PrivateAgent } from '../../../bridge/private-agent/private-agent.ts';

test('a bridge that ends while it makes ready starts no agent that it would never let go of', async () => {
  const base = await mkdtemp(join(tmpdir(), 'gantry-private-'));
  try {
    const life = new AbortController();
    const agent = new PrivateAgent({
      settings: {
        url: 'http://127.0.0.1:8000',
        isHere: true,
        // Read while agent.yaml is made, between the last look and the start.
        get timeoutMs() {
          life.abort(new Error('the bridge ends'));
          return 1_000;
        },
      },
      directory: join(base, 'agent'),
      program: { path: join(base, 'gantry-agent.mjs'), env: {} }, // whoever gets as far as this is told that it is missing
      lingerMs: 1_000,
      log: pino({ level: 'silent' }),
    });
    await expect(agent.reach(life.signal)).rejects.toThrow('the bridge ends');
  } finally {
    await rm(base, { recursive: true, force: true });
  }
});
