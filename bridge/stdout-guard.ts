import { Console } from 'node:console';

/**
 * Imported before everything else: stdout belongs to the MCP client (or to the data of a command), and one line that a
 * dependency prints there breaks the protocol. All of console goes to stderr.
 */
globalThis.console = new Console({ stdout: process.stderr, stderr: process.stderr });
