import { z } from 'zod';
import type { ToolListing } from './sdk.ts';
import type { Tool } from './tool.ts';

/**
 * What clients see of the tools, made from their schemas. It is the same for everybody, and making it takes longer than the
 * rest of a start: scripts/build.mjs runs this once and puts the finished list in its place.
 */
export async function toolList(): Promise<readonly ToolListing[]> {
  const { TOOLS } = await import('./tools.ts');
  return TOOLS.map(listing);
}

/** As a client sees one. */
export function listing(tool: Tool): ToolListing {
  const { name, title, description, annotations } = tool;
  return {
    name,
    title,
    description,
    annotations,
    inputSchema: objectSchema(tool.input),
    ...(tool.output !== undefined && { outputSchema: outline(objectSchema(tool.output)) }),
  };
}

/**
 * The size is paid by every conversation, so `$schema` is left out, whose dialect is MCP's default, and so is the length of
 * texts: it is checked all the same, docs/tools.md has it, and no model counts characters.
 */
function objectSchema(schema: z.ZodObject): ToolListing['inputSchema'] {
  const { $schema: _, ...json } = z.toJSONSchema(schema, {
    io: 'input',
    override: ({ jsonSchema }) => {
      delete jsonSchema.minLength;
      delete jsonSchema.maxLength;
      delete jsonSchema['note'];
    },
  });
  return { ...json, type: 'object' } as ToolListing['inputSchema']; // zod types JSON Schema wider than the SDK does
}

/**
 * Only what is always there at the top level of an answer is published, by name and type: what is inside explains itself
 * there, and would triple the list.
 */
function outline({ properties, required = [] }: ToolListing['inputSchema']): ToolListing['inputSchema'] {
  const types = Object.entries(properties ?? {})
    .filter(([name]) => required.includes(name))
    .map(([name, property]) => [name, typeOnly(property)]);
  return {
    type: 'object',
    properties: Object.fromEntries(types) as Record<string, object>, // fromEntries of a tuple is `any` by its own types
  };
}

function typeOnly(property: object): object {
  return 'type' in property ? { type: property.type } : {};
}
