import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import type { RequestListener } from 'node:http';
import { createServer } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import type { AddressInfo, Server } from 'node:net';
import { createServer as createTcpServer } from 'node:net';
import { describe, expect, test } from 'vitest';
import { ofNetwork, whyNotReady } from '../../../agent/engine/why-not-ready.ts';

const PEM = readFileSync('tests/golden/tls/self-signed.pem', 'utf8');
const never = new AbortController().signal;

async function said(server: Server, protocol = 'http'): Promise<string> {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo; // a TCP server that listens has one
  try {
    return await whyNotReady(`${protocol}://127.0.0.1:${port}`, { signal: never, deadlineMs: 20_000 });
  } finally {
    server.close();
    await once(server, 'close');
  }
}

function answering(statuses: Record<string, [number, string?]>, headers = {}): Server {
  const listener: RequestListener = (request, response) => {
    const [status, body = ''] = statuses[request.url ?? ''] ?? [404, '{"detail":"Not Found"}'];
    response.writeHead(status, { connection: 'close', ...headers }).end(body);
  };
  return createServer(listener);
}

/** Says something as soon as it is asked, and hangs up. */
function greeting(): Server {
  return createTcpServer((socket) => {
    socket.on('error', () => undefined);
    socket.once('data', () => socket.end('hello\r\n', () => socket.destroy()));
  });
}

describe('what somebody reads of a server that', () => {
  test.each<[string, Server, RegExp]>([
    [
      'is something else',
      answering({}),
      /is no vLLM-Omni server \(404 at \/health, 404 at \/v1\/models\)\. Give the base URL/,
    ],
    ['starts', answering({ '/health': [503] }), /not healthy \(503\): it starts, or its engine has died/],
    ['is behind a proxy that finds it not', answering({ '/health': [502] }), /A proxy at .* finds no server.*\(502\)/],
    ['wants a key', answering({ '/health': [401] }), /refuses the request \(401\)\. gantry sends no key/],
    [
      'moved',
      answering({ '/health': [308] }, { location: 'https://a.example/' }),
      /redirects to https:\/\/a\.example\//,
    ],
    ['fails', answering({ '/health': [500] }), /answers \/health with 500\. Its log/],
    [
      'is a web page',
      answering({ '/health': [200], '/v1/models': [200, '<html>'] }),
      /no vLLM-Omni server \(\/v1\/models: no JSON\)/,
    ],
    [
      'has no model',
      answering({ '/health': [200], '/v1/models': [200, '{}'] }),
      /lists no model.*else give the base URL/,
    ],
    ['speaks no HTTP', greeting(), /speaks no HTTP/],
  ])('%s', async (_, server, text) => {
    expect(await said(server)).toMatch(text);
  });

  test('has a certificate that nobody here knows', async () => {
    expect(await said(createTlsServer({ key: PEM, cert: PEM }), 'https')).toMatch(
      /The certificate of https:.* is not accepted \(DEPTH_ZERO_SELF_SIGNED_CERT\)\. .*NODE_EXTRA_CA_CERTS/,
    );
  });

  test('is spoken to in TLS and does not know it', async () => {
    expect(await said(answering({}), 'https')).toMatch(/does not speak TLS|hangs up/);
  });
});

describe('what somebody reads of a connection that failed with', () => {
  test.each([
    ['ECONNREFUSED', /Nobody listens at http:\/\/gpu-box:8000 \(connection refused\)\. Start/],
    ['ENOTFOUND', /The name gpu-box in .* is not known here/],
    ['EHOSTUNREACH', /cannot be reached \(EHOSTUNREACH\)\. Check that the machine is on/],
    ['CERT_HAS_EXPIRED', /certificate .* is not accepted \(CERT_HAS_EXPIRED\)/],
    ['ERR_TLS_CERT_ALTNAME_INVALID', /certificate .* is not accepted/],
    ['ERR_SSL_WRONG_VERSION_NUMBER', /does not speak TLS .*Use http:/],
  ])('%s', (code, text) => {
    expect(ofNetwork('http://gpu-box:8000', Object.assign(new Error('x'), { code }))).toMatch(text);
  });

  test('several addresses of one name: the first that says why', () => {
    const one = Object.assign(new Error('x'), { code: 'ECONNREFUSED' });
    expect(ofNetwork('http://gpu-box:8000', new AggregateError([one, one]))).toMatch(/Nobody listens/);
  });
});
