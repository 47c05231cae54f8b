import { existsSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test, vi } from 'vitest';
import { ModelHost, omni, until } from './model-host.ts';

vi.setConfig({ testTimeout: 120_000 });

/** Somebody's server, as far as it is asked who it is. */
class Theirs implements AsyncDisposable {
  readonly #server;
  model = 'their/model';
  wantsKey = false;

  constructor() {
    this.#server = createServer((request, response) => {
      const isModels = request.url === '/v1/models';
      response.statusCode = isModels && this.wantsKey ? 401 : 200;
      response.end(isModels ? JSON.stringify({ data: [{ id: this.model }] }) : '{}');
    });
  }

  async listen(): Promise<string> {
    await new Promise<void>((resolve) => this.#server.listen(0, '127.0.0.1', resolve));
    // A server that listens on a port has an address of this kind.
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

test('an attached server that became another model gets no more work, is not stopped for that, and is found again', async () => {
  await using theirs = new Theirs();
  const trace = join(tmpdir(), `gantry-stopped-${process.pid}-${Date.now()}`);
  const launch = { kind: 'attached' as const, url: await theirs.listen(), stop: ['touch', trace] };
  await using host = await ModelHost.start([omni('a', [], { id: 'their/model', launch })]);
  await until(() => host.state('a') === 'ready');
  theirs.model = 'another/model';
  await until(() => host.state('a') === 'failed');
  const { error, retryInMs } = host.residency.slotFacts('a');
  expect(error?.message).toMatch(/serves another\/model, not their\/model/);
  expect(retryInMs).toBeDefined();
  theirs.model = 'their/model';
  await until(() => host.state('a') === 'ready');
  expect(existsSync(trace)).toBe(false);
});

test('an attached server that wants an API key is refused with what to do about it', async () => {
  await using theirs = new Theirs();
  theirs.wantsKey = true;
  const launch = { kind: 'attached' as const, url: await theirs.listen() };
  await using host = await ModelHost.start([omni('a', [], { id: 'their/model', launch })]);
  await expect(host.move('a', 'load')).rejects.toMatchObject({
    code: 'MODEL_FAILED',
    message: expect.stringMatching(/wants an API key \(401\)[^]*without `--api-key`/) as string,
  });
});
