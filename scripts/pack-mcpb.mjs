// npm run pack:mcpb: dist/mcpb, a folder, and dist/gantry.mcpb, which clients install. The second takes the network.
import { execFileSync } from 'node:child_process';
import { layOutMcpb } from './build/mcpb.mjs';

await layOutMcpb('dist/mcpb');
execFileSync('npx', ['-y', '@anthropic-ai/mcpb@2.1.2', 'pack', 'dist/mcpb', 'dist/gantry.mcpb'], { stdio: 'inherit' });
