"""The things that scenes show: 108 categories in nine groups, with English and Chinese names."""

from __future__ import annotations

from services.trainer.scenes.scene import Category

# group -> lines of "emoji, English singular, English plural, Chinese, Chinese measure word".
_TABLE = {
    "animals": """
        🐕, dog, dogs, 狗, 只
        🐈, cat, cats, 猫, 只
        🐎, horse, horses, 马, 匹
        🐄, cow, cows, 奶牛, 头
        🐖, pig, pigs, 猪, 头
        🐑, sheep, sheep, 绵羊, 只
        🐘, elephant, elephants, 大象, 头
        🦒, giraffe, giraffes, 长颈鹿, 只
        🐇, rabbit, rabbits, 兔子, 只
        🐓, rooster, roosters, 公鸡, 只
        🦉, owl, owls, 猫头鹰, 只
        🐧, penguin, penguins, 企鹅, 只
        🐢, turtle, turtles, 乌龟, 只
        🐟, fish, fish, 鱼, 条
        🐙, octopus, octopuses, 章鱼, 只
        🦋, butterfly, butterflies, 蝴蝶, 只
        🐝, bee, bees, 蜜蜂, 只
        🐌, snail, snails, 蜗牛, 只
    """,
    "food": """
        🍎, apple, apples, 苹果, 个
        🍌, banana, bananas, 香蕉, 根
        🍇, bunch of grapes, bunches of grapes, 葡萄, 串
        🍓, strawberry, strawberries, 草莓, 颗
        🍍, pineapple, pineapples, 菠萝, 个
        🥕, carrot, carrots, 胡萝卜, 根
        🌽, ear of corn, ears of corn, 玉米, 根
        🍞, loaf of bread, loaves of bread, 面包, 个
        🍔, hamburger, hamburgers, 汉堡, 个
        🍕, pizza slice, pizza slices, 披萨, 块
        🍩, doughnut, doughnuts, 甜甜圈, 个
        🎂, birthday cake, birthday cakes, 生日蛋糕, 个
        🍦, ice cream, ice creams, 冰淇淋, 个
        🥚, egg, eggs, 鸡蛋, 个
    """,
    "vehicles": """
        🚗, car, cars, 汽车, 辆
        🚌, bus, buses, 公交车, 辆
        🚒, fire engine, fire engines, 消防车, 辆
        🚜, tractor, tractors, 拖拉机, 辆
        🚲, bicycle, bicycles, 自行车, 辆
        🛵, scooter, scooters, 摩托车, 辆
        🚂, locomotive, locomotives, 火车头, 辆
        🚁, helicopter, helicopters, 直升机, 架
        ✈️, airplane, airplanes, 飞机, 架
        🚀, rocket, rockets, 火箭, 枚
        ⛵, sailboat, sailboats, 帆船, 艘
        🛸, flying saucer, flying saucers, 飞碟, 个
    """,
    "plants": """
        🌲, pine tree, pine trees, 松树, 棵
        🌴, palm tree, palm trees, 棕榈树, 棵
        🌵, cactus, cacti, 仙人掌, 棵
        🌻, sunflower, sunflowers, 向日葵, 朵
        🌹, rose, roses, 玫瑰, 朵
        🌷, tulip, tulips, 郁金香, 朵
        🍁, maple leaf, maple leaves, 枫叶, 片
        🍀, four-leaf clover, four-leaf clovers, 四叶草, 棵
        🍄, mushroom, mushrooms, 蘑菇, 个
        🌳, leafy tree, leafy trees, 大树, 棵
    """,
    "tools": """
        🔨, hammer, hammers, 锤子, 把
        🔧, wrench, wrenches, 扳手, 把
        ✂️, pair of scissors, pairs of scissors, 剪刀, 把
        🔑, key, keys, 钥匙, 把
        🔒, padlock, padlocks, 挂锁, 把
        🧲, magnet, magnets, 磁铁, 块
        🔦, flashlight, flashlights, 手电筒, 个
        🧭, compass, compasses, 指南针, 个
        🔬, microscope, microscopes, 显微镜, 台
        ☂️, umbrella, umbrellas, 雨伞, 把
        🔔, bell, bells, 铃铛, 个
        💡, light bulb, light bulbs, 灯泡, 个
        ✏️, pencil, pencils, 铅笔, 支
    """,
    "sports": """
        ⚽, soccer ball, soccer balls, 足球, 个
        🏀, basketball, basketballs, 篮球, 个
        🎾, tennis ball, tennis balls, 网球, 个
        🎱, billiard ball, billiard balls, 台球, 个
        🥊, boxing glove, boxing gloves, 拳击手套, 只
        🏆, trophy, trophies, 奖杯, 个
        🛹, skateboard, skateboards, 滑板, 块
        🎯, dartboard, dartboards, 靶子, 个
        🏓, table tennis paddle, table tennis paddles, 乒乓球拍, 个
        ⛸️, ice skate, ice skates, 冰鞋, 只
        🪁, kite, kites, 风筝, 个
    """,
    "buildings": """
        🏠, house, houses, 房子, 座
        🏥, hospital, hospitals, 医院, 座
        ⛪, church, churches, 教堂, 座
        🏰, castle, castles, 城堡, 座
        🗼, tower, towers, 铁塔, 座
        ⛺, tent, tents, 帐篷, 顶
        🎡, ferris wheel, ferris wheels, 摩天轮, 座
        🏭, factory, factories, 工厂, 座
        🗽, statue of liberty, statues of liberty, 自由女神像, 座
        ⛲, fountain, fountains, 喷泉, 座
    """,
    "faces": """
        😀, grinning face, grinning faces, 笑脸, 个
        😭, crying face, crying faces, 哭脸, 个
        😡, angry face, angry faces, 怒脸, 个
        😎, face with sunglasses, faces with sunglasses, 墨镜脸, 个
        😴, sleeping face, sleeping faces, 睡脸, 个
        🤖, robot, robots, 机器人, 个
        👻, ghost, ghosts, 幽灵, 个
        💀, skull, skulls, 骷髅头, 个
        🎃, pumpkin lantern, pumpkin lanterns, 南瓜灯, 个
        👽, alien, aliens, 外星人, 个
    """,
    "things": """
        ⌚, watch, watches, 手表, 块
        📷, camera, cameras, 照相机, 台
        💻, laptop, laptops, 笔记本电脑, 台
        ☎️, telephone, telephones, 电话, 部
        🎸, guitar, guitars, 吉他, 把
        🎺, trumpet, trumpets, 小号, 把
        🥁, drum, drums, 鼓, 面
        🎩, top hat, top hats, 礼帽, 顶
        👓, pair of glasses, pairs of glasses, 眼镜, 副
        🎈, balloon, balloons, 气球, 个
        🎁, gift box, gift boxes, 礼物盒, 个
        🧸, teddy bear, teddy bears, 玩具熊, 个
        👟, sneaker, sneakers, 运动鞋, 只
    """,
}


def _parse() -> tuple[Category, ...]:
    categories = []
    for group, table in _TABLE.items():
        for line in table.strip().splitlines():
            emoji, english, plural, chinese, measure_word = (cell.strip() for cell in line.split(","))
            key = english.replace(" ", "_").replace("-", "_")
            categories.append(Category(key, group, emoji, english, plural, chinese, measure_word))
    return tuple(categories)


# In a fixed order: a category's index is its place here.
CATEGORIES: tuple[Category, ...] = _parse()
CATEGORY_INDEX: dict[str, int] = {category.key: index for index, category in enumerate(CATEGORIES)}
