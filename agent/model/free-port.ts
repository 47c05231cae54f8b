import { once } from 'node:events';
import { createServer } from 'node:net';

/**
 * A port that is free now. Anyone may take it before the server binds it: readiness checks who listens, and a server
 * that cannot bind exits and is started again elsewhere.
 */
export async function freePort(host: string): Promise<number> {
  const probe = createServer();
  probe.listen(0, host);
  await once(probe, 'listening');
  const address = probe.address();
  probe.close();
  await once(probe, 'close');
  if (address === null || typeof address === 'string') throw new Error('a TCP listener has a port');
  return address.port;
}
