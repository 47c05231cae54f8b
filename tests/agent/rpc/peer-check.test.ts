import { IncomingMessage } from 'node:http';
import { Socket } from 'node:net';
import { hostname } from 'node:os';
import { describe, expect, test } from 'vitest';
import { checkAddress, findToken } from '../../../agent/rpc/peer-check.ts';

const own = hostname();

describe('Host and Origin', () => {
  test.each([
    ['loopback', { host: '127.0.0.1:7801' }, undefined],
    ['loopback by name', { host: 'localhost:7801' }, undefined],
    ['IPv6 loopback', { host: '[::1]:7801' }, undefined],
    ['this machine', { host: `${own}:7801` }, undefined],
    ['this machine on the local network', { host: `${own.replace(/\.local$/, '')}.local` }, undefined],
    ['a configured name, in any case', { host: 'GPUbox.lan:7801' }, undefined],
    ['own origin', { host: 'localhost:7801', origin: 'http://localhost:7801' }, undefined],
    ['no Host', {}, 421],
    ['empty Host', { host: '' }, 421],
    ['a name that was rebound to us', { host: 'evil.example:7801' }, 421],
    ['a name that begins like ours', { host: 'localhost.evil.example' }, 421],
    ['an address of another machine', { host: '203.0.113.7:7801' }, 421],
    ['the origin of another page', { host: 'localhost:7801', origin: 'http://evil.example' }, 403],
    ['the origin of a file or sandbox', { host: 'localhost:7801', origin: 'null' }, 403],
    ['an origin that begins like ours', { host: 'localhost', origin: 'http://localhost.evil.example' }, 403],
    ['an origin that has ours in it', { host: 'localhost:7801', origin: 'http://evil.example/localhost:7801' }, 403],
    ['our origin by another scheme', { host: 'localhost:7801', origin: 'https://localhost:7801' }, 403],
    ['another port of this machine', { host: 'localhost:7801', origin: 'http://localhost:3000' }, 403],
  ])('%s', (_, headers, status) => {
    expect(checkAddress(request(headers), ['gpubox.lan'])?.status).toBe(status);
  });
});

describe('token', () => {
  const authenticate = (text: string) =>
    Promise.resolve(text === 'good' ? { id: 'id', role: 'viewer' as const } : undefined);

  test('is read from the Authorization header', async () => {
    expect(await findToken(request({ authorization: 'Bearer good' }), authenticate)).toEqual({
      id: 'id',
      role: 'viewer',
    });
  });

  test.each([
    ['no header', {}],
    ['wrong token', { authorization: 'Bearer bad' }],
    ['another scheme', { authorization: 'Basic good' }],
    ['two words', { authorization: 'Bearer good x' }],
    ['token in the path only', {}, '/v1/ws?token=good'],
    ['endless token', { authorization: `Bearer ${'g'.repeat(5_000)}` }],
  ])('%s: no token', async (_, headers, url = '/') => {
    expect(await findToken(request(headers, url), authenticate)).toBeUndefined();
  });
});

function request(headers: Record<string, string>, url = '/'): IncomingMessage {
  const message = new IncomingMessage(new Socket());
  message.headers = headers;
  message.url = url;
  return message;
}
