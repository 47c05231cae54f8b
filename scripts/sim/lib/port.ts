import type { Server } from 'node:http';
import { once } from 'node:events';

/** A port that is bound, so that nobody else gets it, but does not listen yet: connections are refused. */
export type HeldPort = { port: number; listen: (server: Server) => Promise<void> };

/** The two calls of Node's own TCP object that stand behind net.Server. */
type TcpHandle = { bind: (host: string, port: number) => number; bind6: (host: string, port: number) => number };
type TcpBinding = {
  TCP: new (type: number) => TcpHandle & { getsockname: (into: { port?: number }) => number };
  constants: { SERVER: number };
};

/**
 * Binds at once and listens later, as vLLM does. Node's public API can only do both together, so this uses the object below it.
 * As in the original, a clash shows at once when the other one listens; of two that are still loading the later listener fails.
 */
export function holdPort(host: string, port: number): HeldPort | 'in use' {
  // `process.binding` is absent from the types on purpose: it is deprecated, and only this simulator may depend on it.
  const { binding } = process as unknown as { binding: (name: 'tcp_wrap') => TcpBinding };
  const { TCP, constants } = binding('tcp_wrap');
  const handle = new TCP(constants.SERVER);
  const bound = host.includes(':') ? handle.bind6(host, port) : handle.bind(host, port);
  const name: { port?: number } = {};
  // libuv keeps an "address in use" of bind() to itself until the next call.
  if (bound !== 0 || handle.getsockname(name) !== 0) return 'in use';
  return {
    port: name.port ?? port,
    listen: async (server) => {
      server.listen(handle);
      await once(server, 'listening');
    },
  };
}
